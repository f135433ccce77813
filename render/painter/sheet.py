"""The lines of one picture, kept from picture to picture: what stays is drawn once, the rest is put over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from attnlens.render.look.colour import Colours, Pixels, Theme
from attnlens.render.look.furniture import Box, Group, Item, columns, inner_lines, sides, title
from attnlens.render.look.layout import Layout
from attnlens.render.painter.grid import Grid, Inks, Rules
from attnlens.render.painter.page import Pen
from attnlens.render.painter.pigment import Numbers
from attnlens.render.painter.png import blank_lines
from attnlens.render.painter.squeeze import Squeezer
from attnlens.render.scene import Scene

_ABOVE = (inner_lines, title)
_BELOW = (inner_lines, columns, sides)
_CHANGING = {*_ABOVE, *_BELOW}
_KEPT = 48
"""Pictures whose lines below the cells are remembered: windows come again with every query."""

_WORTH = 4
"""Lines in a row that are worth a cut in the compressed stream."""


def lasting(groups: Sequence[Group]) -> tuple[Group, ...]:
    """What is the same in all pictures that one sheet is used for."""
    return tuple(group for group in groups if group[0] not in _CHANGING)


class Sheet:
    """`lines` uint8 (y, 1 + x·depth): each line of the picture minus the one above, after a byte for the filter."""

    def __init__(self, layout: Layout, theme: Theme, colours: Colours, inks: Inks, pen: Pen, what: Sequence[Group]):
        self._layout, self._theme, self._colours, self._inks, self._pen = layout, theme, colours, inks, pen
        depth = inks.pigment.depth
        self.lines = blank_lines(layout.height, layout.width * depth)
        self._body = self.lines[:, 1:]
        paper = np.tile(inks.pigment.solid(theme.paper), layout.width)
        page = np.tile(paper, (layout.height, 1))
        pen.put(_items(what), page, 0)
        np.subtract(page[1:], page[:-1], out=self._body[1:])
        self._body[0] = page[0]
        self._above, self._below = page[: layout.top].copy(), page[layout.bottom :].copy()
        self._beside = page[layout.bottom - 1].copy()
        self._grid = Grid(inks, layout, layout.left, layout.n_column)
        self._strip = Grid(inks, layout, layout.strip_left, 1) if layout.strip else None
        self._squeezer = Squeezer()
        self._bottom = lru_cache(maxsize=_KEPT)(self._foot)

    def draw(self, scene: Scene, groups: Sequence[Group]) -> None:
        """Put a scene into the lines, in place of the one before."""
        layout, theme, body = self._layout, self._theme, self._body
        above = self._above.copy()
        self._pen.put(_outside([group for group in groups if group[0] in _ABOVE], layout), above, 0)
        body[0] = above[0]
        np.subtract(above[1:], above[:-1], out=body[1 : layout.top])
        first, below = self._bottom(tuple(group for group in groups if group[0] in _BELOW))
        body[layout.bottom :] = below
        rows = tuple(row for row in (scene.final_row, scene.row_boundary) if row)
        rules = Rules(column=scene.boundary, rows=rows, line=theme.ink, halo=theme.paper)
        labels = [text for row in scene.labels for text in row]
        self._grid.draw(body, above[-1], first, self._grounds(scene), labels, rules)
        if self._strip is not None and scene.strip is not None:
            values = scene.strip.values
            texts = ["" if np.isnan(value) else f"{value:.2f}" for value in values.tolist()]
            levels = self._colours.levels(values[:, None], (0.0, 1.0))
            grounds = np.where(levels < 0, self._inks.pigment.blank, levels)
            plain = Rules(column=None, rows=(), line=theme.ink, halo=theme.paper)
            self._strip.draw(body, above[-1], first, grounds, texts, plain)

    def squeezed(self) -> list[bytes]:
        """The lines as a zlib stream, in pieces."""
        layout = self._layout
        moving = np.ones(layout.height, np.bool_)
        moving[layout.top : layout.bottom] = self._grid.moving()
        if self._strip is not None:
            moving[layout.top : layout.bottom] |= self._strip.moving()
        edges = np.flatnonzero(np.diff(moving)) + 1  # it starts and ends with lines that move
        still = [(start, stop) for start, stop in edges.reshape(-1, 2).tolist() if stop - start >= _WORTH]
        return self._squeezer.squeeze(self.lines, still)

    def _grounds(self, scene: Scene) -> Numbers:
        levels = self._colours.levels(scene.matrix, scene.scale)
        return np.where(levels < 0, self._inks.pigment.striped, levels)

    def _foot(self, groups: tuple[Group, ...]) -> tuple[Pixels, Pixels]:
        """Below the cells: the first line as it is, and all lines minus the one above."""
        page = np.concatenate([self._beside[None], self._below])
        self._pen.put(_outside(groups, self._layout), page, self._layout.bottom - 1)
        page[0] = self._beside
        return page[1].copy(), page[1:] - page[:-1]


def _items(groups: Iterable[Group]) -> Iterable[Item]:
    for make, arguments in groups:
        yield from make(*arguments)


def _outside(groups: Sequence[Group], layout: Layout) -> Iterable[Item]:
    """Items of groups; of the lines between cells only what sticks out above and below."""
    for make, arguments in groups:
        for item in make(*arguments):
            if make is not inner_lines or (isinstance(item, Box) and item.y < layout.top):
                yield item
