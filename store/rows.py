"""Rows on their way to the disk: blocks handed over by the model's thread, put together again for one write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


@dataclass(frozen=True)
class Block:
    """Rows first … first + count - 1 of one slice `lane` of an array; `start` is the first column that is not 0."""

    lane: slice
    first: int
    count: int
    start: int
    values: Any


class RowBuffer:
    """Blocks of an array whose axes are (lane, …, row, …), kept until their rows are written.

    A lane is a layer or a depth. `lanes` of them exist; `needed` are those that must hand over every row.
    """

    def __init__(self, name: str, lanes: int, needed: Sequence[int]) -> None:
        self.name = name
        self._lanes = lanes
        self._needed = np.asarray(needed, np.intp)
        self._blocks: list[Block] = []
        self.nbytes = 0
        """Memory that the blocks take; those that lie in a file take none."""

    def add(self, block: Block) -> None:
        """Keep a block. Its array is referenced, not copied."""
        self._blocks.append(block)
        self.nbytes += _memory(block)

    def overlapping(self, start: int, stop: int, lanes: slice | None = None) -> list[Block]:
        """Blocks with a row in start … stop - 1 and a lane in `lanes`."""
        low, high, _ = (lanes or slice(None)).indices(self._lanes)
        return [
            block
            for block in self._blocks
            if block.first < stop
            and block.first + block.count > start
            and block.lane.start < high
            and block.lane.stop > low
        ]

    def missing(self, start: int, stop: int, lanes: slice | None = None) -> tuple[int, int] | None:
        """The first (lane, row) in start … stop - 1 that was needed and not handed over, or None."""
        low, high, _ = (lanes or slice(None)).indices(self._lanes)
        seen = np.zeros((self._lanes, stop - start), bool)
        for block in self.overlapping(start, stop, lanes):
            seen[block.lane, max(0, block.first - start) : block.first + block.count - start] = True
        needed = self._needed[(self._needed >= low) & (self._needed < high)]
        absent = np.argwhere(~seen[needed])
        return None if not len(absent) else (int(needed[absent[0][0]]), start + int(absent[0][1]))

    def drop(self, stop: int, lane: int | None = None) -> None:
        """Forget blocks, of one lane or of all, whose rows all lie before `stop`."""
        self._blocks = [
            block
            for block in self._blocks
            if block.first + block.count > stop or (lane is not None and block.lane.start != lane)
        ]
        self.nbytes = sum(map(_memory, self._blocks))


def _memory(block: Block) -> int:
    return block.values.nbytes if isinstance(block.values, np.ndarray) else 0
