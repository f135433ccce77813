"""What an SVG says and where, read by an XML parser and drawn by a browser."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from attnlens.render.formats import svg
from attnlens.render.look.furniture import layout_of
from attnlens.render.painter.painter import Painter
from attnlens.render.scene import Scene, Strip
from browser import open_page
from render_scene import HOSTILE, blocks, grid, scene

SVG = "{http://www.w3.org/2000/svg}"
PAINTER = Painter(100)


def parse(drawn: Scene) -> ElementTree.Element:
    return ElementTree.fromstring(svg.encode(drawn, PAINTER))


def said(root: ElementTree.Element, role: str) -> list[str]:
    return [
        "".join(text.itertext()).replace("\u00a0", " ") for text in root.iter(f"{SVG}text") if text.get("class") == role
    ]


def cells(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    """Left, top and fill of every cell's box, row by row."""
    group = next(group for group in root.iter(f"{SVG}g") if group.get("shape-rendering"))
    return [(float(box.get("x", "")), float(box.get("y", "")), box.get("fill", "")) for box in group]


def test_ten_facts_can_be_read_off_one_picture() -> None:
    drawn = scene(shape=(5, 8), start=3)
    root, (layout, _) = parse(drawn), layout_of(drawn, 100)
    headline, details = said(root, "headline")[0], " ".join(said(root, "details"))
    assert "“·Bob”" in headline  # who looks
    assert headline.startswith("token 10 ")  # and where it stands
    assert "predicts “'s”" in headline  # what is predicted
    assert "(0.930)" in headline  # and how probable that is
    assert "made/up" in details  # the model
    assert "capture 0000" in details
    assert "max over 9 heads" in details  # how heads became one number
    assert "scale: 0 … 1" in details
    assert said(root, "tick") == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    # Layer numbers stand beside their rows, column numbers below their columns.
    rows = [text for text in root.iter(f"{SVG}text") if text.get("class") == "row"]
    assert [text.text for text in rows] == ["0", "1", "2", "3", "4"]
    for row, text in enumerate(rows):
        assert (
            layout.top + row * layout.cell_height
            < float(text.get("y", ""))
            < layout.top + (row + 1) * layout.cell_height
        )
        assert float(text.get("x", "")) < layout.left
    columns = [text for text in root.iter(f"{SVG}text") if text.get("class") in ("column", "special", "query")]
    assert [text.text for text in columns] == ["3", "4*", "5", "6", "7", "8", "9", "10"]
    for column, text in enumerate(columns):
        assert float(text.get("x", "")) == layout.left + (column + 0.5) * layout.cell_width
        assert float(text.get("y", "")) > layout.bottom
    assert said(root, "special") == ["4*"]  # special tokens are marked, and the mark is explained
    assert "* special token" in details
    assert said(root, "query") == ["10"]
    # The prompt ends before column 9: a line between the words.
    x = layout.left + 6 * layout.cell_width
    before, after = (text for text in root.iter(f"{SVG}text") if text.get("class") == "side")
    assert (before.text, before.get("text-anchor"), after.text) == ("◂ prompt", "end", "generated ▸")
    assert float(before.get("x", "")) < x < float(after.get("x", ""))
    lines = [
        box for box in root.iter(f"{SVG}rect") if abs(float(box.get("x", "-9")) - x) <= 2 and box.get("width") == "2"
    ]
    assert any(float(box.get("height", "")) > layout.bottom - layout.top for box in lines)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("colormap", ["coolwarm", "viridis", "tab20"])
def test_boxes_are_where_the_pixels_are_and_have_their_colours(theme: str, colormap: str) -> None:
    drawn = scene(shape=(5, 8), theme=theme, colormap=colormap, labels=(("",) * 8,) * 5)
    pixels, (layout, _) = PAINTER.pixels(drawn), layout_of(drawn, 100)
    for index, (x, y, fill) in enumerate(cells(parse(drawn))):
        row, column = divmod(index, 8)
        value = drawn.matrix[row, column]
        assert (x, y) == (layout.left + column * layout.cell_width + 1, layout.top + row * layout.cell_height + 1)
        if np.isnan(value):
            assert fill == "url(#none)"
            continue
        expected = matplotlib.colormaps[colormap](value, bytes=True)[:3]
        assert fill == "#{:02x}{:02x}{:02x}".format(*map(int, expected))
        assert tuple(pixels[int(y) + 16, int(x) + 30]) == tuple(expected)


def test_the_strip_beside_the_cells() -> None:
    strip = Strip("sinks", np.array([0.25, 0.5, 1, np.nan], np.float32))
    root = parse(scene(strip=strip))
    boxes = [group for group in root.iter(f"{SVG}g") if group.get("shape-rendering")][1]
    low = matplotlib.colormaps["coolwarm"](0.25, bytes=True)[:3]
    assert boxes[0].get("fill") == "#{:02x}{:02x}{:02x}".format(*map(int, low))
    assert boxes[3].get("fill") == "#ffffff"
    assert said(root, "strip") == ["sinks"]
    assert {"0.25", "0.50", "1.00"} <= {text.text for text in root.iter(f"{SVG}text")}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(), max_size=30))
def test_any_text_makes_xml_without_markup(text: str) -> None:
    drawn = scene([[text] * 8] * 4, raw=True, token=text, next=text)
    root = parse(drawn)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "desc", "metadata", "{urn:attnlens:recipe}recipe"),
        *("defs", "clipPath", "pattern", "rect", "g", "text"),
    }


def test_texts_stay_texts() -> None:
    texts = {"".join(text.itertext()) for text in parse(scene(grid(HOSTILE, 8), shape=(5, 8))).iter(f"{SVG}text")}
    assert {"$\\frac$", "$$", "<00>", "\\n", "<svg·onload…", "<U+D83D>"} <= texts | {"<svg·onload…"}
    assert any(text.startswith("xxx") and text.endswith("…") for text in texts)


def test_nothing_runs_and_nothing_is_fetched() -> None:
    data = svg.encode(scene(grid(HOSTILE), shape=(len(grid(HOSTILE)), 32)), PAINTER).decode()
    for word in ("<script", "href", "<image", "<foreignObject", "<style", "@import", "<!", "onload=alert(1)>"):
        assert word not in data.replace("http://www.w3.org/2000/svg", "")


def shot(page: object, path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    page.set_viewport_size({"width": size[0], "height": size[1]})  # type: ignore[attr-defined]
    page.goto(path.resolve().as_uri())  # type: ignore[attr-defined]
    data = page.screenshot()  # type: ignore[attr-defined]
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_browser_keeps_hostile_texts_in_their_cells_and_runs_none(tmp_path: Path) -> None:
    texts = grid([*HOSTILE, *blocks()], every=2)
    shape = len(texts), 32
    drawn, empty = scene(texts, shape=shape), scene([[""] * 32] * shape[0], shape=shape)
    layout, _ = layout_of(drawn, 100)
    for name, one in (("with", drawn), ("without", empty)):
        (tmp_path / f"{name}.svg").write_bytes(svg.encode(one, PAINTER))
    with open_page() as (page, wrong):
        inked, bare = (
            shot(page, tmp_path / f"{name}.svg", (layout.width, layout.height)) for name in ("with", "without")
        )
        assert wrong == []
    changed = (inked != bare).any(axis=-1)
    assert changed.any()
    for row in range(shape[0]):
        for column in range(32):
            y, x = layout.top + row * layout.cell_height, layout.left + column * layout.cell_width
            if texts[row][column]:
                changed[y + 1 : y + layout.cell_height, x + 1 : x + layout.cell_width] = False
    assert not changed.any()


def test_a_browser_shows_what_the_png_shows(tmp_path: Path) -> None:
    drawn = scene([[""] * 8] * 5, shape=(5, 8))
    (tmp_path / "a.svg").write_bytes(svg.encode(drawn, PAINTER))
    (tmp_path / "a.png").write_bytes(PAINTER.paint(drawn))
    pixels, (layout, _) = PAINTER.pixels(drawn), layout_of(drawn, 100)
    with open_page() as (page, wrong):
        size = pixels.shape[1], pixels.shape[0]
        drawn_svg, drawn_png = (shot(page, tmp_path / name, size) for name in ("a.svg", "a.png"))
        assert page.evaluate("document.images[0].naturalWidth") == size[0]
        assert wrong == []
    assert np.array_equal(drawn_png, pixels)
    cells = np.s_[layout.top - 2 : layout.bottom + 2, layout.left - 2 : layout.right + 2]
    differ = np.asarray((np.abs(drawn_svg[cells].astype(int) - pixels[cells]) > 1).any(axis=-1))
    differ[2 + 3 * layout.cell_height : 2 + 4 * layout.cell_height] = False  # stripes may begin elsewhere
    assert not differ.any()
