"""SVG, written out by hand: boxes and text at the pixels' own coordinates, text as text, no script.

A picture is a few thousand strings joined. Everything that repeats, the start of each cell by its place, its colour, a
label with its escapes and its size, is made once and looked up after that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens import __version__
from attnlens.render.formats import measure
from attnlens.render.formats.sheet import grid
from attnlens.render.formats.xml import escape, spelled
from attnlens.render.look import caption
from attnlens.render.look.colour import GRID, ON_DARK, ON_LIGHT, THEMES, Colours, is_dark
from attnlens.render.look.furniture import FLOOR, SIZE, Box, Group, Line, groups, layout_of, rise
from attnlens.render.look.layout import Layout
from attnlens.render.recipes.recipe import LIMIT, to_text
from attnlens.render.scene import Scene

if TYPE_CHECKING:
    from attnlens.render.formats import Rasteriser

NAME = "svg"
SUFFIX = ".svg"
NAMESPACE = "urn:attnlens:recipe"

WIDE = "\u00a0 "
"""Two spaces that stay two: viewers make one of several, whatever the file asks for."""

FONTS = "'DejaVu Sans',Verdana,'Noto Sans','Noto Sans CJK SC','Noto Color Emoji',sans-serif"

_RECIPE = re.compile(rb'<recipe xmlns="urn:attnlens:recipe"[^>]{0,99}>([^<]{0,%d})</recipe>' % (6 * LIMIT))


def encode(scene: Scene, painter: Rasteriser) -> bytes:
    """The SVG of a scene, as large as its PNG."""
    layout, body = _picture(scene, painter.dpi)
    about = caption.headline(scene), ", ".join(caption.details(scene))
    return _document(layout.width, layout.height, about, to_text(scene.recipe), body)


def page(scenes: Sequence[Scene], painter: Rasteriser, recipe: Mapping[str, Any]) -> bytes:
    """An SVG of several scenes, each in a place of its own."""
    pictures = [_picture(scene, painter.dpi) for scene in scenes]
    places = grid([(layout.width, layout.height) for layout, _ in pictures])
    body = b"".join(
        f'<svg x="{number % places.across * places.width}" y="{number // places.across * places.height}" '
        f'width="{layout.width}" height="{layout.height}">'.encode()
        + part
        + b"</svg>"
        for number, (layout, part) in enumerate(pictures)
    )
    width, height = places.across * places.width, places.down * places.height
    ground = f'<rect width="{width}" height="{height}" fill="{_hex(THEMES[scenes[0].theme].paper)}"/>'.encode()
    about = caption.headline(scenes[0]), f"{len(scenes)} pictures"
    return _document(width, height, about, to_text(recipe), ground + body)


def recipe(data: bytes) -> str | None:
    """The recipe in an SVG."""
    if not data.startswith(b"<svg "):
        return None
    found = _RECIPE.search(data)
    return unescape(found[1].decode("utf-8", "replace")) if found else None


def _document(width: int, height: int, about: tuple[str, str], recipe: str, body: bytes) -> bytes:
    title, description = map(escape, about)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{FONTS}" role="img">'
        f"<title>{title}</title><desc>{description}</desc>"
        f'<metadata><recipe xmlns="{NAMESPACE}" software="attnlens {__version__}">{escape(recipe)}</recipe></metadata>'
    )
    return b"".join([head.encode(), body, b"</svg>\n"])


def _picture(scene: Scene, dpi: int) -> tuple[Layout, bytes]:
    """The layout of a picture, and its elements."""
    layout, details = layout_of(scene, dpi)
    parts = [_ground(layout, scene.theme), *_cells(scene, layout)]
    parts += [_group(group, dpi) for group in groups(scene, layout, details)]
    return layout, b"".join(parts)


@lru_cache(maxsize=8)
def _colours(name: str) -> Colours:
    return Colours(name)


@lru_cache(maxsize=8)
def _ground(layout: Layout, theme: str) -> bytes:
    """Paper, what the cells refer to, and the lines between them, which are what the cells leave free."""
    line, step, colours = layout.px(1), layout.px(3), THEMES[theme]
    width, height = layout.cell_width - line, layout.cell_height - line
    side = 3 * step
    clip = f'<rect x="{-width / 2:g}" y="{-rise(layout)}" width="{width}" height="{height}"/>'
    stripes = (
        f'<rect width="{side}" height="{side}" fill="{_hex(colours.hatch[0])}"/>'
        f'<rect width="{step}" height="{side}" fill="{_hex(colours.hatch[1])}"/>'
    )
    blocks = [(layout.left, layout.right - layout.left)]
    if layout.strip:
        blocks.append((layout.strip_left, layout.cell_width))
    grounds = "".join(
        f'<rect x="{x}" y="{layout.top}" width="{wide}" height="{layout.bottom - layout.top}" fill="{_hex(GRID)}"/>'
        for x, wide in blocks
    )
    return (
        f'<defs><clipPath id="cell">{clip}</clipPath>'
        f'<pattern id="none" width="{side}" height="{side}" patternUnits="userSpaceOnUse">{stripes}</pattern></defs>'
        f'<rect width="{layout.width}" height="{layout.height}" fill="{_hex(colours.paper)}"/>{grounds}'
    ).encode()


def _cells(scene: Scene, layout: Layout) -> Iterator[bytes]:
    """The cells, and the strip beside them."""
    colours, theme = _colours(scene.colormap), scene.theme
    labels = _labels(layout, scene.colormap, theme)
    levels = colours.levels(scene.matrix, scene.scale).ravel().tolist()
    texts = [text for row in scene.labels for text in row]
    yield from _block(_grid(layout, layout.left, layout.n_column), levels, texts, _shades(scene.colormap, ""), labels)
    if scene.strip is not None:
        values = scene.strip.values
        texts = ["" if value != value else f"{value:.2f}" for value in values.tolist()]
        levels = colours.levels(values[:, None], (0.0, 1.0)).ravel().tolist()
        blank = _shades(scene.colormap, _hex(THEMES[theme].paper))
        yield from _block(_grid(layout, layout.strip_left, 1), levels, texts, blank, labels)


def _block(
    grid: _Grid, levels: list[int], texts: list[str], fills: list[bytes], labels: list[_Labels]
) -> Iterator[bytes]:
    """Every cell's box, then every cell's text."""
    yield b'<g shape-rendering="crispEdges">'
    yield _alternate(grid.boxes, [fills[level] for level in levels])
    yield grid.between
    starts = grid.texts
    if not all(texts):
        starts, texts, levels = _written(starts, texts, levels)
    yield _alternate(starts, [labels[level][text] for text, level in zip(texts, levels, strict=True)])
    yield b"</g>"


def _alternate(starts: Sequence[bytes], ends: Sequence[bytes]) -> bytes:
    """First start, first end, second start …"""
    parts = [b""] * (2 * len(starts))
    parts[::2], parts[1::2] = starts, ends
    return b"".join(parts)


def _written(starts: list[bytes], texts: list[str], levels: list[int]) -> tuple[list[bytes], list[str], list[int]]:
    """Those of the cells that have a text."""
    there = [index for index, text in enumerate(texts) if text]
    return [starts[index] for index in there], [texts[index] for index in there], [levels[index] for index in there]


@dataclass(frozen=True, eq=False)
class _Grid:
    """How each cell's box and text begin, row by row, and what is between boxes and texts."""

    boxes: list[bytes]
    texts: list[bytes]
    between: bytes


@lru_cache(maxsize=8)
def _grid(layout: Layout, left: int, n_column: int) -> _Grid:
    line = layout.px(1)
    width, height = layout.cell_width - line, layout.cell_height - line
    xs = [left + column * layout.cell_width + line for column in range(n_column)]
    ys = [layout.top + row * layout.cell_height + line for row in range(layout.n_row)]
    up, size = rise(layout), SIZE * layout.dpi / 72
    return _Grid(
        boxes=[f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="'.encode() for y in ys for x in xs],
        texts=[f'<text transform="translate({x + width / 2:g},{y + up})"'.encode() for y in ys for x in xs],
        between=f'</g><g font-size="{size:g}" fill="{_hex(ON_LIGHT)}" text-anchor="middle">'.encode(),
    )


@lru_cache(maxsize=16)
def _shades(colormap: str, absent: str) -> list[bytes]:
    """The rest of a box by level; the last one is that of a cell without a value: `absent`, or stripes."""
    fills = [_hex(colour) for colour in _colours(colormap).table.tolist()]
    return [f'{fill}"/>'.encode() for fill in (*fills, absent or "url(#none)")]


@lru_cache(maxsize=8)
def _labels(layout: Layout, colormap: str, theme: str) -> list[_Labels]:
    """Labels by level, the last ones those of a cell without a value: dark on light, or light on dark."""
    room = layout.cell_width - layout.px(1) - 2 * layout.px(4)
    on_light = _Labels(room, layout.dpi, "")
    on_dark = _Labels(room, layout.dpi, f' fill="{_hex(ON_DARK)}"')
    colours = [*_colours(colormap).table.tolist(), THEMES[theme].hatch[0]]
    return [on_dark if dark else on_light for dark in is_dark(np.array(colours, np.uint8)).tolist()]


class _Labels(dict[str, bytes]):
    """Label → the rest of its element, from the attributes that follow its place. Kept below a number of entries."""

    LIMIT = 1 << 16

    def __init__(self, room: int, dpi: int, colour: str) -> None:
        super().__init__()
        self._room, self._pixels, self._colour = room, dpi / 72, colour

    def __missing__(self, text: str) -> bytes:
        fitted = measure.fit(spelled(text), self._room / self._pixels, size=SIZE, floor=FLOOR)
        size = f' font-size="{fitted.size * self._pixels:g}"' if fitted.size != SIZE else ""
        width = fitted.width * self._pixels
        # No font is twice as wide as the one that was measured, so short texts need nothing that holds them.
        held = _held(width) if width > self._room / 2 else ""
        clip = "" if max(text) < "\u0300" and not held else ' clip-path="url(#cell)"'
        if len(self) >= self.LIMIT:
            self.clear()
        made = self[text] = f"{clip}{self._colour}{size}{held}>{escape(fitted.text)}</text>".encode()
        return made


def _held(width: float) -> str:
    """Attributes that hold a text to its width in any font."""
    return f' textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"'


@lru_cache(maxsize=1024)
def _group(group: Group, dpi: int) -> bytes:
    make, arguments = group
    return "".join([_item(item, dpi) for item in make(*arguments)]).encode()


def _item(item: Box | Line, dpi: int) -> str:
    if isinstance(item, Box):
        return (
            f'<rect x="{item.x:g}" y="{item.y:g}" width="{item.width:g}" height="{item.height:g}" '
            f'fill="{_hex(item.colour)}"/>'
        )
    anchor = "" if item.anchor == "start" else f' text-anchor="{item.anchor}"'
    weight = ' font-weight="bold"' if item.bold else ""
    held = _held(item.width) if len(item.text) > 4 else ""
    return (
        f'<text x="{item.x:g}" y="{item.y:g}" font-size="{item.size * dpi / 72:g}" fill="{_hex(item.colour)}"'
        f'{anchor}{weight}{held} class="{item.role}">{escape(item.text.replace("  ", WIDE))}</text>'
    )


def _hex(colour: Sequence[int]) -> str:
    return f"#{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}"
