"""Pictures as an image library sees them: colours, places, text that stays in its cell."""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from attnlens.render.look.colour import THEMES, Colours, is_dark
from attnlens.render.look.furniture import layout_of
from attnlens.render.look.layout import Layout, lay_out
from attnlens.render.painter import atlas, fontfiles, fonts, squeeze
from attnlens.render.painter.fonts import Typesetter, drawable
from attnlens.render.painter.painter import Painter
from attnlens.render.painter.pigment import Indexed
from attnlens.render.scene import Prediction, Scene, Strip, Subject
from attnlens.render.text.legible import legible
from attnlens.schemas.errors import InputError

HOSTILE = ["$\\frac$", "$$", "\x00", "\n", "\u202e\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627",
           "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\ud83d", "x" * 300, "W" * 12, "\u4e2d\u56fd\u8bdd",
           "ẤẬ\u0303\u0302", "e" + "\u0301" * 9, "\u0e01\u0e33", "\ufdfa", "\ufdfd", "<svg onload=alert(1)>",
           "\\", "^_{", "{}%#&~", "j" * 9, "Ǻ" * 30, "\U0001d54f", "\u1d16e", "𒐫", "\u0489", "\u20dd", "…",
           "\u0bb8\u0bcd\u0bb0\u0bc0", "ff" * 6]  # fmt: skip


def scene(
    labels: dict[tuple[int, int], str] | None = None,
    *,
    shape: tuple[int, int] = (4, 8),
    start: int = 3,
    n_prompt: int = 6,
    colormap: str = "coolwarm",
    none: int | None = None,
    special: frozenset[int] = frozenset({4}),
    **fields: Any,
) -> Scene:
    """All rows of a model of few layers, some columns from `start`; the last column is the query."""
    n_row, n_column = shape
    matrix = np.random.default_rng(7).random((n_row, n_column), np.float32)
    matrix[-1] = 0
    if none is not None:
        matrix[none] = np.nan
    texts = [["" for _ in range(n_column)] for _ in range(n_row)]
    for (row, column), text in (labels or {}).items():
        texts[row][column] = legible(text)
    subject = Subject(
        model="made/up",
        capture="0000",
        status="complete",
        n_prompt=n_prompt,
        n_layer=n_row - 1,
        special=special,
        lens_absent=None,
        reduction="max over 9 heads",
    )
    about: dict[str, Any] = {
        "query": start + n_column - 1,
        "token": "·Bob",
        "predicted": Prediction(text="'s", probability=0.9296),
        "next": None,
        "rows": tuple(range(n_row)),
        "columns": tuple(range(start, start + n_column)),
        "matrix": matrix,
        "labels": tuple(map(tuple, texts)),
        "colormap": colormap,
    }
    return Scene(subject=subject, **{**about, **fields})


def layout_for(drawn: Scene, dpi: int = 100) -> Layout:
    return layout_of(drawn, dpi)[0]


def read(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def inside(layout: Layout, row: int, column: int) -> tuple[slice, slice]:
    """The pixels of a cell, without the lines around it."""
    y, x = layout.top + row * layout.cell_height, layout.left + column * layout.cell_width
    line = layout.cell.line
    return slice(y + line, y + layout.cell_height), slice(x + line, x + layout.cell_width)


def corners(pixels: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """A pixel near the upper left corner of each cell (row, column, rgb), where no text comes."""
    step = layout.px(3) + 1
    rows = layout.top + step + np.arange(layout.n_row) * layout.cell_height
    columns = layout.left + step + np.arange(layout.n_column) * layout.cell_width
    return pixels[np.ix_(rows, columns)]


def expected_fills(drawn: Scene) -> NDArray[np.uint8]:
    low, high = drawn.scale
    mapped = matplotlib.colormaps[drawn.colormap]((drawn.matrix - low) / (high - low), bytes=True)
    return np.asarray(mapped)[..., :3]


@pytest.mark.parametrize("colormap", ["coolwarm", "viridis", "tab20", "twilight"])
@pytest.mark.parametrize("dpi", [60, 100, 173])
@pytest.mark.parametrize("scale", [(0.0, 1.0), (-0.5, 0.75)])
def test_fills_are_the_colours_of_the_colormap(colormap: str, dpi: int, scale: tuple[float, float]) -> None:
    drawn = scene({(1, 1): "word", (2, 2): "x" * 300}, colormap=colormap, scale=scale, n_prompt=99)
    pixels = read(Painter(dpi).paint(drawn))
    assert np.array_equal(corners(pixels, layout_for(drawn, dpi)), expected_fills(drawn))


def test_a_cell_without_text_is_one_colour() -> None:
    drawn = scene(n_prompt=99)
    pixels, layout, fills = Painter().pixels(drawn), layout_for(drawn), expected_fills(drawn)
    for row in range(3):
        for column in range(8):
            y, x = inside(layout, row, column)
            cell = pixels[y, x] if row < 2 else pixels[y, x][:-3]  # the line above the last row reaches into it
            assert (cell == fills[row, column]).all()


@pytest.mark.parametrize("colormap", ["coolwarm", "viridis", "magma", "cividis", "RdBu_r", "tab20", "turbo", "hsv"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_palette_is_off_by_no_more_than_it_says(colormap: str, theme: str) -> None:
    drawn = scene({(0, 0): "word"}, colormap=colormap, theme=theme, shape=(9, 31), n_prompt=99)
    data = Painter(palette=True).paint(drawn)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
    said = Indexed(Colours(colormap), THEMES[theme]).error
    off = np.abs(corners(read(data), layout_for(drawn)).astype(int) - expected_fills(drawn))
    assert off.max() <= said <= 14
    exact = Painter().pixels(drawn).astype(int)
    assert np.abs(read(data) - exact).mean() < 6


@pytest.mark.parametrize("name", ["flag", "prism", "Pastel1", "gray", "nipy_spectral", "berlin"])
def test_every_colormap_has_a_palette(name: str) -> None:
    if name not in matplotlib.colormaps:
        pytest.skip("a newer colormap")
    palette = Indexed(Colours(name), THEMES["light"]).palette
    assert len(palette) <= 256
    read(Painter(60, palette=True).paint(scene({(1, 1): "word"}, colormap=name)))


def test_a_layer_without_attention_is_grey_and_striped_not_zero() -> None:
    drawn = scene(none=1)
    pixels = read(Painter().paint(drawn))
    y, x = inside(layout_for(drawn), 1, 0)
    cell = pixels[y, x].reshape(-1, 3)
    assert len(np.unique(cell, axis=0)) == 2
    assert (cell[:, 0] == cell[:, 1]).all()
    assert (cell[:, 1] == cell[:, 2]).all()


def strays(painter: Painter, text: str) -> int:
    """Pixels outside cell (1, 5) that a text in it changes."""
    drawn = scene({(1, 5): text})
    with_text, without = painter.pixels(drawn), painter.pixels(scene())
    changed = (with_text != without).any(axis=-1)
    assert changed.any(), "the text left no ink"
    changed[inside(layout_for(drawn, painter.dpi), 1, 5)] = False
    return int(changed.sum())


@pytest.mark.parametrize("dpi", [20, 50, 100])
@pytest.mark.parametrize("palette", [False, True])
def test_hostile_texts_leave_ink_inside_their_cell_only(dpi: int, palette: bool) -> None:
    painter = Painter(dpi, palette=palette)
    assert {text: strays(painter, text) for text in HOSTILE} == dict.fromkeys(HOSTILE, 0)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(), max_size=20))
def test_any_text_stays_inside_its_cell(text: str) -> None:
    assert strays(PAINTER, text) == 0


PAINTER = Painter(60)


def composed(drawn: Scene, dpi: int) -> NDArray[np.uint8]:
    """The cells of a scene without heavy lines, put together pixel by pixel from fills and coverage of glyphs."""
    layout, fills = layout_for(drawn, dpi), expected_fills(drawn)
    page = np.zeros((layout.n_row * layout.cell_height, layout.n_column * layout.cell_width, 3), np.uint8)
    page[:] = (38, 38, 38)
    line, width = layout.cell.line, layout.cell_width
    for row, texts in enumerate(drawn.labels):
        for column, text in enumerate(texts):
            y, x = row * layout.cell_height, column * width
            page[y + line : y + layout.cell_height, x + line : x + width] = fills[row, column]
            room = layout.cell.room
            ink = Typesetter(dpi).fit(text, width - line - 2 * layout.px(4), len(room), size=9.0, floor=6.25)
            height, wide = ink.mask.shape
            capital = 0.73 * ink.size * dpi / 72
            top = round((layout.cell_height - line + capital) / 2) - ink.rise
            y += line + max(min(top, room.stop - height), room.start)
            x += round((line + width - wide) / 2)
            target = page[y : y + height, x : x + wide]
            colour = np.array([255] * 3 if is_dark(fills[row, column]) else [38] * 3, float)
            share = ink.mask[..., None] / 255
            target[:] = np.floor(fills[row, column] + (colour - fills[row, column]) * share + 0.5)
    return page


@pytest.mark.parametrize("dpi", [60, 100, 173])
def test_cells_are_fills_and_glyphs_put_together(dpi: int) -> None:
    words = ["·Bob", "gjpqy|", "Ấ", "x" * 40, ".", "", "’", "ÅÇ", "\u4e2d", "W" * 12, "ффф", "\ufdfa", "·", "$$"]
    labels = {(row, column): words[(row * 7 + column) % len(words)] for row in range(4) for column in range(8)}
    drawn = scene(n_prompt=99, labels=labels)
    drawn = dataclasses.replace(drawn, subject=dataclasses.replace(drawn.subject, n_layer=9))
    pixels, layout = Painter(dpi).pixels(drawn), layout_for(drawn, dpi)
    off = pixels[layout.top : layout.bottom, layout.left : layout.right].astype(int) - composed(drawn, dpi)
    assert np.abs(off).max() <= 1


def test_dollars_are_dollars() -> None:
    painter = Painter()
    pictures = [painter.pixels(scene({(1, 1): text})) for text in ("$x$", "x", "$x")]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def luminance(colours: NDArray[Any]) -> NDArray[Any]:
    channel = colours / 255
    linear = np.where(channel <= 0.03928, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_contrasts_with_its_cell(theme: str) -> None:
    words = {(row, column): "WWWW" for row in range(4) for column in range(8)}
    drawn = scene(words, n_prompt=99, theme=theme, none=1)
    pixels, layout = Painter(200).pixels(drawn), layout_for(drawn, 200)
    for row in range(4):
        for column in range(8):
            y, x = inside(layout, row, column)
            light = luminance(pixels[y, x][6:-6, 6:-6].reshape(-1, 3))
            ground, ink = light[0], light[np.argmax(abs(light - light[0]))]
            assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 2.99


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_around_the_cells_contrast_with_the_paper(theme: str) -> None:
    colours = THEMES[theme]
    paper = luminance(np.array(colours.paper))
    for text in (colours.ink, colours.faint, colours.accent):
        light = luminance(np.array(text))
        assert (max(paper, light) + 0.05) / (min(paper, light) + 0.05) >= 4.5
    pixels = Painter().pixels(scene(theme=theme))
    assert tuple(pixels[0, 0]) == tuple(pixels[-1, -1]) == colours.paper


@pytest.fixture
def bundled_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As it is without the extra `fonts`."""
    with_extras = fontfiles.extras
    monkeypatch.setattr(fonts, "extras", lambda: ())
    for kept in (fonts._has, fonts._chain, fonts._one):
        kept.cache_clear()
    yield
    monkeypatch.setattr(fonts, "extras", with_extras)
    for kept in (fonts._has, fonts._chain, fonts._one):
        kept.cache_clear()


@pytest.mark.usefixtures("bundled_only")
def test_missing_characters_are_spelled_out_and_counted_once() -> None:
    painter = Painter()
    first = painter.pixels(scene({(0, 0): "\u4e2d", (1, 1): "\u4e2d\u56fd", (2, 2): "abc"}))
    assert painter.missing == 2
    assert np.array_equal(first, painter.pixels(scene({(0, 0): "U+4E2D", (1, 1): "U+4E2D 56FD", (2, 2): "abc"})))


SCRIPTS = {
    "cjk": "中文字符",
    "kana": "ひらがな",
    "hangul": "한국어",
    "devanagari": "हिन्दी",
    "bengali": "বাংলা",
    "tamil": "தமிழ்",
    "thai": "สวัสดี",
    "khmer": "ខ្មែរ",
    "hebrew": "שלום",
    "arabic": "مرحبا",
    "emoji": "😀🎉",
}


FAMILIES = [
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f3c3\u200d\u2642\ufe0f",
    "\u2764\ufe0f\u200d\U0001f525",
    "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea",
]


@pytest.mark.skipif(not fontfiles.extras(), reason="needs the extra fonts")
@pytest.mark.parametrize("sequence", FAMILIES)
def test_an_emoji_of_several_characters_is_drawn_as_one(sequence: str) -> None:
    typesetter = Typesetter(100)
    one = typesetter.fit("\U0001f469", 400, 100, size=20, floor=20)
    several = typesetter.fit(sequence, 400, 100, size=20, floor=20)
    assert several.text == sequence
    assert several.width > 0
    assert typesetter.width(sequence, 20) == typesetter.width("\U0001f469", 20)
    cut = typesetter.fit(sequence * 9, 4 * one.width, 100, size=20, floor=20).text.removesuffix("…")
    assert cut == sequence * (len(cut) // len(sequence)) != ""
    assert not typesetter.missing


@pytest.mark.usefixtures("bundled_only")
@pytest.mark.parametrize("sequence", FAMILIES)
def test_an_emoji_that_no_font_has_is_spelled_whole(sequence: str) -> None:
    shown = Typesetter(100)._spell(sequence, fonts.REGULAR)
    for character in sequence:
        assert character in shown.replace("\u200d", "").replace("\ufe0f", "") or f"{ord(character):04X}" in shown


@pytest.mark.skipif(not fontfiles.extras(), reason="needs the extra fonts")
@pytest.mark.parametrize("script", SCRIPTS)
def test_with_the_extra_every_script_is_drawn(script: str) -> None:
    painter, text = Painter(), SCRIPTS[script]
    assert all(drawable(character) for character in text)
    pixels = painter.pixels(scene({(1, 1): text}))
    assert painter.missing == 0
    assert not np.array_equal(pixels, painter.pixels(scene()))
    assert strays(painter, text) == 0


def test_arabic_is_shaped() -> None:
    if tuple(map(int, matplotlib.__version__.split(".")[:2])) < (3, 11):
        pytest.skip("matplotlib shapes text from 3.11 on")
    joined, apart = (Typesetter(100).fit(text, 500, 100, size=9.0, floor=9.0) for text in ("ببب", "ب ب ب"))
    gaps = ~joined.mask.any(axis=0)
    assert not gaps.any()
    assert (~apart.mask.any(axis=0)).any()


def test_what_dejavu_draws_looks_the_same_with_and_without_the_extra(request: pytest.FixtureRequest) -> None:
    drawn = scene({(0, column): text for column, text in enumerate(["·Bob", "Ω≈ç", "привет", "مرحبا", "ა", "∀x"])})
    first = Painter().paint(drawn)
    request.getfixturevalue("bundled_only")
    assert Painter().paint(drawn) == first


@pytest.mark.parametrize("palette", [False, True])
def test_bytes_do_not_depend_on_how_much_is_remembered(monkeypatch: pytest.MonkeyPatch, palette: bool) -> None:
    labels = {(row, column): f"{row}{column}" * (row + 1) for row in range(4) for column in range(8)}
    scenes = [scene(labels, start=start, theme=theme) for start in (3, 4, 9) for theme in ("light", "dark")]
    expected = [Painter(palette=palette).paint(one) for one in scenes]
    monkeypatch.setattr(atlas, "BUDGET", 1)
    monkeypatch.setattr(atlas, "_TEXTS", 40)
    monkeypatch.setattr("attnlens.render.painter.grid._BLOCK", 8)
    painter = Painter(palette=palette)
    assert [painter.paint(one) for one in scenes] == expected
    assert [painter.paint(one) for one in reversed(scenes)] == expected[::-1]


def test_a_sheet_keeps_nothing_of_the_picture_before() -> None:
    tall = "Ấ\u0323"
    one = scene({(0, 0): tall, (1, 1): tall, (2, 3): "x"}, none=2)
    other = scene({(0, 1): "x"}, n_prompt=9)
    plain = dataclasses.replace(other, subject=dataclasses.replace(other.subject, n_layer=9, n_prompt=99))
    painter = Painter()
    for drawn in (one, other, plain, one, plain, other):
        assert painter.paint(drawn) == Painter().paint(drawn)


def test_a_strip_beside_the_cells_has_values_and_colours() -> None:
    values = np.array([0.25, 0.5, 1.0, np.nan], np.float32)
    drawn = scene(strip=Strip(label="sink", values=values))
    layout, pixels = layout_for(drawn), Painter().pixels(drawn)
    wanted = matplotlib.colormaps["coolwarm"](values[:3], bytes=True)[:, :3]
    for row in range(4):
        pixel = pixels[layout.top + row * layout.cell_height + 4, layout.strip_left + 4]
        assert tuple(pixel) == (tuple(wanted[row]) if row < 3 else THEMES["light"].paper)
    assert layout.width > layout_for(scene()).width


def test_texts_beside_the_numbers_have_room() -> None:
    plain = scene()
    drawn = scene(row_labels=("a", "b", "c", "d"), column_labels=tuple("abcdefgh"))
    layout, before = layout_for(drawn), layout_for(plain)
    assert layout.left > before.left
    assert layout.height > before.height
    pixels, other = (
        Painter().pixels(drawn),
        Painter().pixels(scene(row_labels=("", "", "", ""), column_labels=("",) * 8)),
    )
    changed = (pixels != other).any(axis=-1)
    assert changed[layout.top : layout.bottom, : layout.left].any()
    assert changed[layout.bottom :].any()
    assert not changed[layout.top : layout.bottom, layout.left :].any()


def test_encoding_does_not_need_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = scene({(1, 1): " Bob"})
    first = Painter().pixels(drawn)
    monkeypatch.setattr(squeeze, "isal_zlib", None)
    assert np.array_equal(read(Painter().paint(drawn)), first)


def test_bytes_do_not_depend_on_what_was_painted_before_nor_on_settings_of_matplotlib() -> None:
    scenes = [scene({(1, 1): " Bob"}), scene({(0, 3): "x" * 40}, shape=(3, 5)), scene({(2, 2): "\u4e2d"}, none=0)]
    forwards, backwards = Painter(), Painter()
    expected = [forwards.paint(one) for one in scenes]
    assert [backwards.paint(one) for one in scenes[::-1]][::-1] == expected
    odd: Any = {
        "text.hinting": "none",
        "text.antialiased": False,
        "font.family": ["serif"],
        "savefig.dpi": 20,
        "text.color": "r",
    }
    with matplotlib.rc_context(odd):
        assert [Painter().paint(one) for one in scenes] == expected


def test_png_says_who_made_it_and_nothing_that_changes() -> None:
    data = Painter(150).paint(scene())
    kinds, at = [], 8
    while at < len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        kinds.append(data[at + 4 : at + 8].decode())
        at += 12 + size
    assert kinds == ["IHDR", "pHYs", "tEXt", "IDAT", "IEND"]
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.info["Software"].startswith("attnlens ")
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_decoded_pixels_are_the_pixels(palette: bool, theme: str) -> None:
    painter, drawn = Painter(palette=palette), scene({(1, 1): " Bob", (0, 2): "\ufdfa"}, none=2, theme=theme)
    assert np.array_equal(read(painter.paint(drawn)), painter.pixels(drawn))


def changed(one: Scene, other: Scene) -> NDArray[np.bool_]:
    painter = Painter()
    return np.asarray((painter.pixels(one) != painter.pixels(other)).any(axis=-1))


def test_boundary_between_prompt_and_generation_is_marked() -> None:
    layout = layout_for(scene())
    here = changed(scene(n_prompt=6), scene(n_prompt=9))[layout.top : layout.bottom]
    columns = {round((x - layout.left) / layout.cell_width) for x in np.flatnonzero(here.any(axis=0))}
    assert columns == {3, 6}


def test_special_columns_are_marked_below_the_cells() -> None:
    layout = layout_for(scene())
    here = changed(scene(special=frozenset({4})), scene(special=frozenset({9})))
    assert not here[layout.top : layout.bottom].any()
    below = here[layout.bottom :].any(axis=0)
    assert {int((x - layout.left) // layout.cell_width) for x in np.flatnonzero(below)} == {1, 6}


def test_canvas_is_cells_not_margin() -> None:
    layout = lay_out(33, 32, 100)
    cells = layout.n_row * layout.cell_height * layout.n_column * layout.cell_width
    assert cells / (layout.width * layout.height) > 0.85


@pytest.mark.parametrize("dpi", [0, -5, 19, 1201])
def test_unusable_resolution(dpi: int) -> None:
    with pytest.raises(InputError, match=f"--dpi {dpi} is out of range"):
        Painter(dpi)


def test_unknown_colormap_names_close_ones() -> None:
    with pytest.raises(InputError, match=r"--cmap 'virdis' is no colormap.*viridis"):
        Painter().paint(scene(colormap="virdis"))


def test_too_large_a_picture_is_refused() -> None:
    with pytest.raises(InputError, match="--window"):
        lay_out(33, 2000, 100)
