"""Fixed places for generated rows that are computed together.

Rows wait for each other because a product costs the same for a few as for one, but no longer than a moment. Which rows
meet then depends on the clock, and the last bits of a product on its shape. So every row has its place in a group, and
a group is computed in one shape, rows that are not there yet as zeros: the same text gives the same numbers every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_ROWS = 8
"""Rows of a group; it ends at a multiple of this on the timeline, where rows are committed."""


class Slots:
    """Places of one capture's rows, whose first one that waits also begins the first group."""

    def __init__(self) -> None:
        self._origin: int | None = None

    def place(self, first: int, count: int) -> tuple[int, slice]:
        """Rows of the group that the rows first … first + count - 1 are in, and where in it they are."""
        self._origin = first if self._origin is None else self._origin
        start = max(self._origin, first - first % GROUP_ROWS)
        stop = first - first % GROUP_ROWS + GROUP_ROWS
        return stop - start, slice(first - start, first - start + count)


def ends_group(row: int) -> bool:
    """Whether a row is the last one of its group."""
    return (row + 1) % GROUP_ROWS == 0


def spread(values: Tensor, size: int, at: slice, axis: int = 0) -> Tensor:
    """`values` at their places along an axis of `size`, zeros elsewhere."""
    if values.shape[axis] == size:
        return values
    shape = list(values.shape)
    shape[axis] = size
    whole = torch.zeros(shape, dtype=values.dtype, device=values.device)
    whole.narrow(axis, at.start, at.stop - at.start).copy_(values)
    return whole
