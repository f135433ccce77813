"""Where everything goes, in whole pixels. Cells keep their size, the canvas follows from their number."""

from __future__ import annotations

from dataclasses import dataclass

from attnlens.schemas.errors import InputError

CELL_WIDTH = 78
CELL_HEIGHT = 34
"""Pixels at 100 dpi: wide enough for most tokens at 9 points."""

MIN_WIDTH = 500
"""Pixels of the cells together at 100 dpi: few columns are made wider, so that the title has room."""

_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 62, 84, 48
_TITLE_LINE = 15
"""Pixels at 100 dpi around the cells, and for each line of the title after the second."""

LIMIT = 2**15
"""Most pixels in either direction."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Pixel positions, x to the right and y downwards: cell (row, column) starts at top + row·cell_height."""

    width: int
    height: int
    left: int
    top: int
    cell_width: int
    cell_height: int
    n_row: int
    n_column: int
    dpi: int

    @property
    def right(self) -> int:
        """The first pixel right of the cells."""
        return self.left + self.n_column * self.cell_width

    @property
    def bottom(self) -> int:
        """The first pixel below the cells."""
        return self.top + self.n_row * self.cell_height

    def px(self, value: float) -> int:
        """Pixels for a length that is given at 100 dpi, at least 1."""
        return max(1, round(value * self.dpi / 100))


def lay_out(n_row: int, n_column: int, dpi: int, extra_lines: int = 0) -> Layout:
    """The layout of a picture of n_row × n_column cells under a title of 2 + `extra_lines` lines.

    Raises:
        InputError: dpi is unusable, or the picture would be too large to draw.
    """
    if not 20 <= dpi <= 1200:
        raise InputError(f"--dpi {dpi} is out of range: 20 … 1200")
    cell_width, cell_height, left, top, right, bottom = (
        round(value * dpi / 100)
        for value in (
            max(CELL_WIDTH, MIN_WIDTH / n_column),
            CELL_HEIGHT,
            _LEFT,
            _TOP + extra_lines * _TITLE_LINE,
            _RIGHT,
            _BOTTOM,
        )
    )
    layout = Layout(
        width=left + n_column * cell_width + right,
        height=top + n_row * cell_height + bottom,
        left=left,
        top=top,
        cell_width=cell_width,
        cell_height=cell_height,
        n_row=n_row,
        n_column=n_column,
        dpi=dpi,
    )
    if max(layout.width, layout.height) > LIMIT:
        raise InputError(
            f"a picture of {n_row} × {n_column} cells at {dpi} dpi would have {layout.width} × {layout.height} pixels, "
            f"the limit is {LIMIT} either way: choose a smaller --window or --dpi, or fewer --layers"
        )
    return layout
