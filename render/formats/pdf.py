"""PDF, written out by hand: one page of boxes and text; the letters are inside, and can be searched and copied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attnlens.render.formats import glyphs, measure
from attnlens.render.formats.pdf_file import Letters, document
from attnlens.render.formats.sheet import grid
from attnlens.render.look import caption
from attnlens.render.look.colour import GRID, ON_DARK, ON_LIGHT, THEMES, Colour, Colours, is_dark
from attnlens.render.look.furniture import FLOOR, SIZE, Box, groups, layout_of, rise
from attnlens.render.look.layout import Layout
from attnlens.render.recipes.recipe import LIMIT, to_text
from attnlens.render.scene import Labels, Scene

if TYPE_CHECKING:
    from attnlens.render.formats import Rasteriser

NAME = "pdf"
SUFFIX = ".pdf"

_RECIPE = re.compile(rb"/AttnlensRecipe <([0-9a-f]{0,%d})>" % (2 * LIMIT))


def encode(scene: Scene, painter: Rasteriser) -> bytes:
    """The PDF of a scene, as large on paper as its PNG."""
    return page([scene], painter, scene.recipe)


def page(scenes: Sequence[Scene], painter: Rasteriser, recipe: Mapping[str, Any]) -> bytes:
    """A PDF of several scenes on one page."""
    letters = Letters()
    laid = [layout_of(scene, painter.dpi) for scene in scenes]
    places = grid([(layout.width, layout.height) for layout, _ in laid])
    paper = THEMES[scenes[0].theme].paper
    width, height = places.across * places.width, places.down * places.height
    parts = [_rgb(paper), f"0 0 {width} {height} re f\n".encode()]
    for number, (scene, (layout, details)) in enumerate(zip(scenes, laid, strict=True)):
        x, y = number % places.across * places.width, number // places.across * places.height
        parts.append(f"q 1 0 0 1 {x} {y} cm\n".encode())
        parts += _cells(scene, layout, letters)
        parts += _around(scene, layout, details, letters)
        parts.append(b"Q\n")
    info = {"Title": caption.headline(scenes[0]), "AttnlensRecipe": to_text(recipe)}
    return document(b"".join(parts), letters, width, height, 72 / painter.dpi, info)


def recipe(data: bytes) -> str | None:
    """The recipe in a PDF."""
    if not data.startswith(b"%PDF-"):
        return None
    found = _RECIPE.search(data)
    return bytes.fromhex(found[1].decode()).decode("utf-8", "replace") if found else None


def _cells(scene: Scene, layout: Layout, letters: Letters) -> Iterator[bytes]:
    """The cells, and the strip beside them."""
    stripes = THEMES[scene.theme].hatch[1]
    yield from _block(layout, layout.left, scene, scene.matrix, scene.scale, scene.labels, stripes, letters)
    if scene.strip is not None:
        values = scene.strip.values[:, None]
        texts = tuple(("" if value != value else f"{value:.2f}",) for value in scene.strip.values.tolist())
        yield from _block(layout, layout.strip_left, scene, values, (0.0, 1.0), texts, None, letters)


def _block(
    layout: Layout,
    left: int,
    scene: Scene,
    matrix: npt.NDArray[np.float32],
    scale: tuple[float, float],
    labels: Labels,
    stripes: Colour | None,
    letters: Letters,
) -> Iterator[bytes]:
    """Every cell: colour, stripes or paper where there is no value, and text."""
    yield _box(left, layout.top, matrix.shape[1] * layout.cell_width, layout.bottom - layout.top, GRID)
    rgb = _colours(scene.colormap).fill(matrix, scale, scene.theme)
    dark, empty = is_dark(rgb), np.isnan(matrix)
    line, up, dpi = layout.px(1), rise(layout), layout.dpi
    width, height = layout.cell_width - line, layout.cell_height - line
    room = width - 2 * layout.px(4)
    for row, texts in enumerate(labels):
        y = layout.top + row * layout.cell_height + line
        for column, text in enumerate(texts):
            x = left + column * layout.cell_width + line
            blank = empty[row, column] and stripes is None
            yield _box(x, y, width, height, THEMES[scene.theme].paper if blank else rgb[row, column].tolist())
            if empty[row, column] and stripes is not None:
                yield _rgb(stripes) + _stripes(x, y, width, height, layout.px(3))
            if text:
                yield _rgb(ON_DARK if dark[row, column] else ON_LIGHT)
                shown, size, wide = _fitted(text, room, dpi, letters)
                put = letters.show(shown, x + (width - wide) / 2, y + up, size * dpi / 72, measure.REGULAR)
                # Advances are exact here; only ink that leaves its advance can leave the cell.
                yield put if text.isascii() else b"q %d %d %d %d re W n\n%sQ\n" % (x, y, width, height, put)


def _fitted(text: str, room: float, dpi: int, letters: Letters) -> tuple[str, float, float]:
    """A cell's text as it is shown, its size in points and its width in pixels; each is worked out once a page."""
    key = text, room
    if key not in letters.fitted:
        shown = glyphs.spell(text, measure.REGULAR)
        found = measure.fit(shown, room * 72 / dpi, size=SIZE, floor=FLOOR, advance=glyphs.advance)
        letters.fitted[key] = found.text, found.size, found.width * dpi / 72
    return letters.fitted[key]


def _around(scene: Scene, layout: Layout, details: tuple[str, ...], letters: Letters) -> Iterator[bytes]:
    for make, arguments in groups(scene, layout, details):
        for item in make(*arguments):
            if isinstance(item, Box):
                yield _box(item.x, item.y, item.width, item.height, item.colour)
                continue
            font = measure.BOLD if item.bold else measure.REGULAR
            text, size = glyphs.spell(item.text, font), item.size * layout.dpi / 72
            wide = measure.width(text, size, font, glyphs.advance)
            left = item.x - {"start": 0.0, "middle": wide / 2, "end": wide}[item.anchor]
            yield _rgb(item.colour)
            yield letters.show(text, left, item.y, size, font)


def _stripes(x: int, y: int, width: int, height: int, step: int) -> bytes:
    """Upright stripes, the first one at the left edge of the cell."""
    starts = range(0, width, 3 * step)
    return " ".join(f"{x + at} {y} {min(step, width - at)} {height} re" for at in starts).encode() + b" f\n"


@lru_cache(maxsize=8)
def _colours(name: str) -> Colours:
    return Colours(name)


def _box(x: float, y: float, width: float, height: float, colour: Sequence[int]) -> bytes:
    return _rgb(colour) + f"{x:g} {y:g} {width:g} {height:g} re f\n".encode()


def _rgb(colour: Sequence[int]) -> bytes:
    return "{:.4g} {:.4g} {:.4g} rg\n".format(*(value / 255 for value in colour)).encode()
