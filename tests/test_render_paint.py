"""Pictures as an image library sees them: colours, places, text that stays in its cell."""

from __future__ import annotations

import io
import struct
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from attnlens.render.layout import lay_out
from attnlens.render.paint import Painter
from attnlens.render.scene import Evidence, Prediction, Scene, Subject, build_scene
from attnlens.render.text import legible
from attnlens.render.windows import Window
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
    **subject: Any,
) -> Scene:
    """All rows of a model of few layers, some columns from `start`; the last column is the query."""
    n_row, n_column = shape
    stop = start + n_column
    attention = np.random.default_rng(7).random((n_row, stop), np.float32)
    attention[-1] = 0
    if none is not None:
        attention[none] = np.nan
    texts = [["" for _ in range(stop)] for _ in range(n_row)]
    for (row, column), text in (labels or {}).items():
        texts[row][start + column] = legible(text)
    about: dict[str, Any] = {
        "model": "made/up",
        "capture": "0000",
        "status": "complete",
        "n_prompt": n_prompt,
        "n_layer": n_row - 1,
        "special": frozenset({4}),
        "lens_absent": None,
        "reduction": "max over 9 heads",
    }
    evidence = Evidence(
        query=stop - 1,
        token="·Bob",
        predicted=Prediction(text="'s", probability=0.9296),
        next=None,
        rows=tuple(range(n_row)),
        attention=attention,
        labels=tuple(map(tuple, texts)),
    )
    return build_scene(evidence, Window(start, stop, 1), Subject(**{**about, **subject}), colormap=colormap)


def read(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def corner(pixels: NDArray[np.uint8], dpi: int, shape: tuple[int, int], row: int, column: int) -> tuple[int, ...]:
    """A pixel near the upper left corner of a cell, where no text comes."""
    layout, inside = lay_out(*shape, dpi), round(3 * dpi / 100) + 1
    y, x = layout.top + row * layout.cell_height + inside, layout.left + column * layout.cell_width + inside
    return tuple(pixels[y, x].tolist())


@pytest.mark.parametrize("colormap", ["coolwarm", "viridis", "tab20"])
@pytest.mark.parametrize("dpi", [60, 100, 173])
def test_cells_have_the_colours_of_the_colormap(colormap: str, dpi: int) -> None:
    drawn = scene({(1, 1): "word", (2, 2): "x" * 300}, colormap=colormap)
    pixels = read(Painter(dpi).paint(drawn))
    for row in range(4):
        for column in range(8):
            value = float(drawn.matrix[row, column])
            expected = matplotlib.colormaps[colormap](value, bytes=True)[:3]
            assert corner(pixels, dpi, (4, 8), row, column) == tuple(int(channel) for channel in expected)


def test_a_layer_without_attention_is_grey_and_hatched_not_zero() -> None:
    pixels = read(Painter().paint(scene(none=1)))
    layout = lay_out(4, 8, 100)
    top, left = layout.top + layout.cell_height + 4, layout.left + 4
    cell = pixels[top : top + 26, left : left + 70].reshape(-1, 3)
    assert len(np.unique(cell, axis=0)) == 2
    assert (cell[:, 0] == cell[:, 1]).all()
    assert (cell[:, 1] == cell[:, 2]).all()


def inside(layout: Any, row: int, column: int) -> tuple[slice, slice]:
    y, x = layout.top + row * layout.cell_height, layout.left + column * layout.cell_width
    return slice(y + 1, y + layout.cell_height), slice(x + 1, x + layout.cell_width)


def strays(painter: Painter, text: str) -> int:
    """Pixels outside cell (1, 5) that a text in it changes."""
    with_text, without = painter.pixels(scene({(1, 5): text})), painter.pixels(scene())
    changed = (with_text != without).any(axis=-1)
    assert changed.any(), "the text left no ink"
    changed[inside(lay_out(4, 8, painter.dpi), 1, 5)] = False
    return int(changed.sum())


@pytest.mark.parametrize("dpi", [50, 100])
def test_hostile_texts_leave_ink_inside_their_cell_only(dpi: int) -> None:
    painter = Painter(dpi)
    assert {text: strays(painter, text) for text in HOSTILE} == dict.fromkeys(HOSTILE, 0)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(), max_size=20))
def test_any_text_stays_inside_its_cell(text: str) -> None:
    assert strays(PAINTER, text) == 0


PAINTER = Painter(60)


def test_dollars_are_dollars() -> None:
    painter = Painter()
    pictures = [painter.pixels(scene({(1, 1): text})) for text in ("$x$", "x", "$x")]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def luminance(colours: NDArray[Any]) -> NDArray[Any]:
    channel = colours / 255
    linear = np.where(channel <= 0.03928, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ [0.2126, 0.7152, 0.0722])


def test_text_contrasts_with_its_cell() -> None:
    drawn = scene({(row, column): "WWWW" for row in range(4) for column in range(8)}, n_prompt=99)
    pixels, layout = Painter(200).pixels(drawn), lay_out(4, 8, 200)
    for row in range(4):
        for column in range(8):
            y, x = inside(layout, row, column)
            light = luminance(pixels[y, x][6:-6, 6:-6].reshape(-1, 3))
            ground, ink = light[0], light[np.argmax(abs(light - light[0]))]
            assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 2.99


def test_missing_characters_are_spelled_out_and_counted_once() -> None:
    painter = Painter()
    first = painter.pixels(scene({(0, 0): "\u4e2d", (1, 1): "\u4e2d\u56fd", (2, 2): "abc"}))
    assert painter.missing == 2
    assert np.array_equal(first, painter.pixels(scene({(0, 0): "U+4E2D", (1, 1): "U+4E2D 56FD", (2, 2): "abc"})))


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


def test_encoded_pixels_are_the_pixels() -> None:
    painter, drawn = Painter(), scene({(1, 1): " Bob"})
    assert np.array_equal(read(painter.paint(drawn)), painter.pixels(drawn))


def changed(one: Scene, other: Scene) -> NDArray[np.bool_]:
    painter = Painter()
    return np.asarray((painter.pixels(one) != painter.pixels(other)).any(axis=-1))


def test_boundary_between_prompt_and_generation_is_marked() -> None:
    layout = lay_out(4, 8, 100)
    here = changed(scene(n_prompt=6), scene(n_prompt=9))[layout.top : layout.bottom]
    columns = {round((x - layout.left) / layout.cell_width) for x in np.flatnonzero(here.any(axis=0))}
    assert columns == {3, 6}


def test_special_columns_are_marked_below_the_cells() -> None:
    layout = lay_out(4, 8, 100)
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
