"""A block of cells, put together line by line: fills, lines between cells, and texts out of an atlas.

Everything here is in differences: each line of pixels minus the one above, which is what a PNG stores. Within a cell
only its first lines and those that cross its text differ from the line above; the rest stays zero and is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attnlens.render.look.colour import GRID, Colour, Pixels
from attnlens.render.look.layout import Cell, Layout
from attnlens.render.painter.atlas import Atlas, Texts
from attnlens.render.painter.pigment import Numbers, Pigment

_BLOCK = 4096
"""Cells that are looked up at a time."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Heavy lines before a column and before some rows, with a halo that keeps them visible on any colour."""

    column: int | None
    rows: tuple[int, ...]
    line: Colour
    halo: Colour


class Inks:
    """What cells of one size are drawn with: grounds as lines of pixels, and an atlas for each class of text."""

    def __init__(self, pigment: Pigment, texts: Texts, cell: Cell) -> None:
        self.pigment, self._texts = pigment, texts
        self.lines = pigment.cell_lines(cell.width, cell.line, cell.px(3))
        self._atlases = Atlas(pigment, self.lines, texts.band), Atlas(pigment, self.lines, cell.room)

    def find(self, labels: Sequence[str], grounds: Numbers) -> list[tuple[Atlas, Numbers, Numbers]]:
        """For rows of cells, labels (row·column) on grounds (row, column): atlas, which rows, numbers (row, column).

        What is found stays good until the next call.
        """
        n_row, n_column = grounds.shape
        full = [atlas for atlas in self._atlases if not atlas.room(grounds.size)]
        if not self._texts.room(grounds.size):
            self._texts.clear()
            full = list(self._atlases)
        for atlas in full:
            atlas.clear()
        slots = self._texts.numbers(labels).reshape(n_row, n_column)
        low = self._texts.inside[slots].all(axis=1)
        return [
            (atlas, rows, atlas.numbers(self._texts, slots[rows], grounds[rows]))
            for atlas, rows in zip(self._atlases, (np.flatnonzero(low), np.flatnonzero(~low)), strict=True)
            if len(rows)
        ]


class Grid:
    """One block of cells in the lines of a picture; its first pixel in each line is `left`."""

    def __init__(self, inks: Inks, layout: Layout, left: int, n_column: int) -> None:
        self._inks, self._layout, self._n_column = inks, layout, n_column
        depth = inks.pigment.depth
        self._bytes = slice(left * depth, (left + n_column * layout.cell_width) * depth)
        self._between = np.tile(inks.pigment.solid(GRID), n_column * layout.cell_width)
        self._dirty: list[slice | None] = [None] * layout.n_row
        self._ruled: list[slice] = []

    def draw(
        self, lines: Pixels, above: Pixels, below: Pixels, grounds: Numbers, labels: Sequence[str], rules: Rules
    ) -> None:
        """Put cells into `lines`, the differences (y, x·depth) of the picture.

        Args:
            lines: zero where the cells are, or what this grid drew there before.
            above, below: bytes (x·depth) of the picture's lines next to the cells.
            grounds: what the cells are filled with (row, column).
            labels: their texts (row·column).
            rules: where heavy lines stand.
        """
        layout, line, step = self._layout, self._layout.cell.line, self._layout.cell_height
        block = lines[layout.top : layout.bottom, self._bytes]
        for ruled in self._ruled:
            block[ruled] = 0
        fills = self._inks.lines[grounds].reshape(len(grounds), -1)
        between = self._crossed(self._between[None].copy(), rules)[0]
        self._crossed(fills, rules)
        np.subtract(between, above[self._bytes], out=block[0])
        np.subtract(between, fills[:-1], out=block[step::step])
        np.subtract(fills, between, out=block[line::step])
        lines[layout.bottom, self._bytes] = below[self._bytes] - fills[-1]
        self._texts(block, grounds, labels)
        self._ruled = [self._rule(block, fills, row, rules) for row in rules.rows]

    def moving(self) -> npt.NDArray[np.bool_]:
        """Which lines of the block (y) the last picture put something into."""
        layout = self._layout
        moving = np.zeros((layout.n_row, layout.cell_height), np.bool_)
        moving[:, : layout.cell.line + 1] = True
        flat = moving.reshape(-1)
        for touched in (*self._dirty, *self._ruled):
            if touched is not None:
                flat[touched] = True
        return flat

    def _texts(self, block: Pixels, grounds: Numbers, labels: Sequence[str]) -> None:
        layout, n_column = self._layout, self._n_column
        at_once = max(1, _BLOCK // n_column)
        for start in range(0, len(grounds), at_once):
            stop = min(start + at_once, len(grounds))
            found = self._inks.find(labels[start * n_column : stop * n_column], grounds[start:stop])
            for atlas, rows, numbers in found:
                height = len(atlas.band) + 1
                for row, needed in zip((rows + start).tolist(), numbers, strict=True):
                    y = row * layout.cell_height + layout.cell.line + atlas.band.start
                    here = slice(y, y + height)
                    if self._dirty[row] not in (None, here):
                        block[self._dirty[row]] = 0
                    self._dirty[row] = here
                    target = block[here].reshape(height, n_column, -1)
                    target[...] = atlas.cells.take(needed, axis=0).transpose(1, 0, 2)

    def _crossed(self, lines: Pixels, rules: Rules) -> Pixels:
        """`lines` (n, x·depth) with the heavy line before a column in them."""
        if rules.column is not None:
            pigment, (thick, halo) = self._inks.pigment, self._layout.cell.rule
            x = rules.column * self._layout.cell_width - thick // 2
            pixels = lines.reshape(len(lines), -1, pigment.depth)
            pixels[:, x - halo : x + thick + halo] = pigment.solid(rules.halo)
            pixels[:, x : x + thick] = pigment.solid(rules.line)
        return lines

    def _rule(self, block: Pixels, fills: Pixels, row: int, rules: Rules) -> slice:
        """The heavy line before a row, over what is there."""
        pigment, (thick, halo) = self._inks.pigment, self._layout.cell.rule
        width = block.shape[1] // pigment.depth
        colours = [rules.halo] * halo + [rules.line] * thick + [rules.halo] * halo
        drawn = self._crossed(np.stack([np.tile(pigment.solid(colour), width) for colour in colours]), rules)
        first = row * self._layout.cell_height - thick // 2 - halo
        here = slice(first, first + len(drawn) + 1)
        np.subtract(np.concatenate([drawn, fills[row : row + 1]]), np.concatenate([fills[row - 1 : row], drawn]),
                    out=block[here])  # fmt: skip
        return here
