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

ROW_LABEL, COLUMN_LABEL = 80, 16
"""Pixels at 100 dpi of the texts beside row numbers and below column numbers."""

_STRIP_GAP, _BAR_GAP = 14, 20

LIMIT = 2**15
"""Most pixels in either direction."""


@dataclass(frozen=True)
class Cell:
    """The size of a cell in pixels. A cell begins with `line` pixels of the line between cells, above and left."""

    width: int
    height: int
    dpi: int

    @property
    def line(self) -> int:
        """Pixels of the line between cells."""
        return self.px(1)

    @property
    def rule(self) -> tuple[int, int]:
        """Pixels of a heavy line between cells, and of its halo on either side. It lies across where a cell begins."""
        return self.px(2), self.px(1)

    @property
    def room(self) -> range:
        """Lines that a text may cover, counted from below the line between cells: no heavy line comes there.

        One more line below them is left to the cell, so that the cell's own colour ends every text.
        """
        thick, halo = self.rule
        return range(max(1, thick - thick // 2 + halo - self.line), self.height - self.line - thick // 2 - halo - 1)

    def px(self, value: float) -> int:
        """Pixels for a length that is given at 100 dpi, at least 1."""
        return max(1, round(value * self.dpi / 100))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Pixel positions, x to the right and y downwards: cell (row, column) starts at top + row·cell_height.

    `row_label` and `column_label` are the pixels kept free for such texts. The strip is one column of cells right of
    the others, where `strip` says that there is one.
    """

    width: int
    height: int
    left: int
    top: int
    cell_width: int
    cell_height: int
    n_row: int
    n_column: int
    dpi: int
    row_label: int = 0
    column_label: int = 0
    strip: bool = False

    @property
    def cell(self) -> Cell:
        """The size of a cell."""
        return Cell(self.cell_width, self.cell_height, self.dpi)

    @property
    def right(self) -> int:
        """The first pixel right of the cells."""
        return self.left + self.n_column * self.cell_width

    @property
    def bottom(self) -> int:
        """The first pixel below the cells."""
        return self.top + self.n_row * self.cell_height

    @property
    def strip_left(self) -> int:
        """The first pixel of the strip's cells."""
        return self.right + self.px(_STRIP_GAP)

    @property
    def strip_right(self) -> int:
        """The first pixel right of the strip's cells, or of all cells where there is no strip."""
        return self.strip_left + self.cell_width if self.strip else self.right

    @property
    def bar_left(self) -> int:
        """The first pixel of the colour bar."""
        return self.strip_right + self.px(_BAR_GAP)

    def px(self, value: float) -> int:
        """Pixels for a length that is given at 100 dpi, at least 1."""
        return max(1, round(value * self.dpi / 100))


def lay_out(
    n_row: int,
    n_column: int,
    dpi: int,
    extra_lines: int = 0,
    *,
    row_labels: bool = False,
    column_labels: bool = False,
    strip: bool = False,
) -> Layout:
    """The layout of a picture of n_row × n_column cells under a title of 2 + `extra_lines` lines.

    Raises:
        InputError: dpi is unusable, or the picture would be too large to draw.
    """
    if not 20 <= dpi <= 1200:
        raise InputError(f"--dpi {dpi} is out of range: 20 … 1200")
    cell_width, cell_height, left, top, right, bottom, gap, row_label, column_label = (
        round(value * dpi / 100)
        for value in (
            max(CELL_WIDTH, MIN_WIDTH / n_column),
            CELL_HEIGHT,
            _LEFT,
            _TOP + extra_lines * _TITLE_LINE,
            _RIGHT,
            _BOTTOM,
            _STRIP_GAP if strip else 0,
            ROW_LABEL if row_labels else 0,
            COLUMN_LABEL if column_labels else 0,
        )
    )
    beside = max(gap, 1) + cell_width if strip else 0
    layout = Layout(
        width=left + row_label + n_column * cell_width + beside + right,
        height=top + n_row * cell_height + column_label + bottom,
        left=left + row_label,
        top=top,
        cell_width=cell_width,
        cell_height=cell_height,
        n_row=n_row,
        n_column=n_column,
        dpi=dpi,
        row_label=row_label,
        column_label=column_label,
        strip=strip,
    )
    if max(layout.width, layout.height) > LIMIT:
        raise InputError(
            f"a picture of {n_row} × {n_column} cells at {dpi} dpi would have {layout.width} × {layout.height} pixels, "
            f"the limit is {LIMIT} either way: choose a smaller --window or --dpi, or fewer --layers"
        )
    return layout
