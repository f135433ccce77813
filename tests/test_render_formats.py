"""Every format: it opens, it carries its recipe, it is the same again, and no text is too much for it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnlens.render.formats import format_named, formats, glyphs, measure, pdf, svg, webp
from attnlens.render.formats.pdf_file import Letters
from attnlens.render.look.furniture import FLOOR, SIZE, layout_of
from attnlens.render.painter.painter import Painter
from attnlens.render.recipes.recipe import from_text, options_of, to_text
from attnlens.render.text.emoji import clusters
from attnlens.schemas.errors import InputError
from browser import open_page
from render_scene import HOSTILE, blocks, grid, scene

PAINTER = Painter(60)
NAMES = [form.NAME for form in formats()]


def test_names_and_endings_are_each_their_own() -> None:
    assert NAMES == ["png", "svg", "pdf", "webp"]
    assert {form.SUFFIX for form in formats()} == {f".{name}" for name in NAMES}
    with pytest.raises(InputError, match=r"--format 'jpg': there is no such format, choose png, svg, pdf, webp"):
        format_named("jpg")


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_carries_its_recipe_and_is_the_same_again(name: str) -> None:
    form, drawn = format_named(name), scene()
    data = form.encode(drawn, PAINTER)
    assert json.loads(form.recipe(data) or "") == drawn.recipe
    assert form.encode(scene(), Painter(60)) == data
    assert [other.NAME for other in formats() if other.recipe(data) is not None] == [name]
    bare = form.encode(dataclasses.replace(drawn, recipe={}), PAINTER)
    assert form.recipe(bare) == "{}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\xff\xff\xff\xff", b"RIFF\0\0\0\0WEBP",
                                  b"<svg ", b"%PDF-1.4", b"<html>", bytes(range(256))])  # fmt: skip
def test_no_recipe_in_what_is_no_picture_of_ours(name: str, data: bytes) -> None:
    assert format_named(name).recipe(data) is None


@pytest.mark.parametrize("name", ["png", "webp"])
def test_pixels_come_through_exactly(name: str) -> None:
    drawn = scene(shape=(5, 8))
    with Image.open(io.BytesIO(format_named(name).encode(drawn, PAINTER))) as image:
        assert image.format == name.upper()
        assert np.array_equal(np.asarray(image.convert("RGB")), PAINTER.pixels(drawn))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_vocabulary_in_every_format(name: str) -> None:
    texts = grid([*HOSTILE, *blocks()])
    drawn = scene(texts, shape=(len(texts), 32), token=HOSTILE[0], next="<&>\u202e")
    data = format_named(name).encode(drawn, PAINTER)
    assert format_named(name).recipe(data) == to_text(drawn.recipe)
    if name in ("png", "webp"):
        with Image.open(io.BytesIO(data)) as image:
            image.load()


@pytest.mark.parametrize("form", [svg, pdf])
def test_even_texts_that_no_one_made_legible(form: object) -> None:
    drawn = scene([[text] for text in HOSTILE] + [[""]], shape=(len(HOSTILE) + 1, 1), raw=True)
    assert form.encode(drawn, PAINTER)  # type: ignore[attr-defined]


def content(data: bytes) -> str:
    """What the page of a PDF says, uncompressed."""
    found = re.search(rb"4 0 obj\n<< /Filter /FlateDecode /Length (\d+) >>\nstream\n", data)
    assert found
    return zlib.decompress(data[found.end() : found.end() + int(found[1])]).decode("latin-1")


def test_a_pdf_has_its_objects_where_its_table_says() -> None:
    data = pdf.encode(scene(), PAINTER)
    start = int(data[data.rindex(b"startxref\n") + 10 :].split()[0])
    assert data[start:].startswith(b"xref\n")
    offsets = [int(line[:10]) for line in data[start:].splitlines()[3:] if line.endswith(b" n ")]
    assert offsets
    for number, offset in enumerate(offsets, 1):
        assert data[offset:].startswith(b"%d 0 obj\n" % number)
    for found in re.finditer(rb"/Length (\d+) >>\nstream\n", data):
        assert data[found.end() + int(found[1]) :].startswith(b"\nendstream")


def test_a_pdf_is_as_large_as_its_png_and_says_the_same() -> None:
    drawn = scene()
    data, (layout, _) = pdf.encode(drawn, PAINTER), layout_of(drawn, 60)
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", data)
    assert box
    assert [float(box[1]), float(box[2])] == pytest.approx([layout.width * 1.2, layout.height * 1.2], abs=0.01)
    # A text is written as codes of a font whose own table says which characters they are.
    tables = [
        zlib.decompress(data[found.end() : found.end() + int(found[1])]).decode()
        for found in re.finditer(rb"/Filter /FlateDecode /Length (\d+) >>\nstream\n", data)
    ][1:]
    characters = [
        {code: bytes.fromhex(text).decode("utf-16-be") for code, text in re.findall(r"<(..)> <(\w+)>\n", table)}
        for table in tables
    ]
    texts = [
        "".join(
            characters[int(font)][codes[at : at + 2]]
            for font, codes in re.findall(r"/F(\d+) \S+ Tf <(\w*)> Tj", line)
            for at in range(0, len(codes), 2)
        )
        for line in content(data).splitlines()
        if line.startswith("BT")
    ]
    assert {"t0.0", "t2.7", "layer", "◂ prompt", "4*"} <= set(texts)
    assert any(text.startswith("token 10 “·Bob” (generated 1)   predicts “'s” (0.930)") for text in texts)


@pytest.mark.parametrize("text", [*HOSTILE, *blocks()[::7], "W" * 99, "\U0001f469" * 40])
def test_texts_of_a_pdf_fit_their_cell(text: str) -> None:
    shown, size, width = pdf._fitted(text, 70.0, 100, Letters())
    assert width <= 70
    assert FLOOR <= size <= SIZE
    advances = [glyphs.advance(character, measure.REGULAR) for character in clusters(shown)]
    assert sum(advances) * size * 100 / 72 == pytest.approx(width)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_holds_every_picture(name: str) -> None:
    form, scenes = format_named(name), [scene(start=start) for start in (3, 4, 5)]
    data = form.page(scenes, PAINTER, {"recipe": 1, "page": 3})
    assert form.recipe(data) == '{"page":3,"recipe":1}'
    if name in ("png", "webp"):
        with Image.open(io.BytesIO(data)) as image:
            page = np.asarray(image.convert("RGB"))
        parts = [PAINTER.pixels(one).copy() for one in scenes]
        height, width = parts[0].shape[:2]
        across = page.shape[1] // width
        for number, part in enumerate(parts):
            y, x = number // across * height, number % across * width
            assert np.array_equal(page[y : y + height, x : x + width], part)
    if name == "svg":
        assert data.count(b"<svg ") == 4
    if name == "pdf":
        assert content(data).count(" cm\n") == 4


def test_too_large_a_page_says_what_to_do() -> None:
    with pytest.raises(InputError, match="choose a larger --step, a smaller --dpi"):
        format_named("png").page([scene()] * 20000, Painter(100), {})
    with pytest.raises(InputError, match="not possible, the format ends at 16383"):
        webp._check(20000, 10)


def test_every_format_a_browser_shows(tmp_path: Path) -> None:
    for name in ("png", "svg", "webp"):
        (tmp_path / f"a.{name}").write_bytes(format_named(name).encode(scene(), PAINTER))
    height, width, _ = PAINTER.pixels(scene()).shape
    with open_page() as (page, wrong):
        for name in ("png", "svg", "webp"):
            (tmp_path / "a.html").write_text(f"<img src=a.{name}>")
            page.goto((tmp_path / "a.html").as_uri())
            assert page.evaluate("[document.images[0].naturalWidth, document.images[0].naturalHeight]") == [
                width,
                height,
            ]
        assert wrong == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"recipe":1}', "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"recipe":2,"software":"attnlens 9"}', "drawn by attnlens 9: its recipe is of kind 2"),
    ],
)
def test_damaged_recipes_are_refused_in_a_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_text(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"glitter": True}, "with glitter, which this version"),
        ({"workers": 3}, "with workers"),
        ({"dpi": "100"}, "dpi is '100'"),
        ({"dpi": True}, "dpi is True"),
    ],
)
def test_recipes_ask_for_no_more_than_there_is(options: dict[str, object], message: str) -> None:
    recipe = {"recipe": 1, "software": "attnlens 9", "store": "x", "capture": "0000", "options": options}
    with pytest.raises(InputError, match=message):
        options_of(recipe)
