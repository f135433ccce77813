"""Arrays whose first axis is a layer or a depth, written row after row: what a capture may hold beyond the usual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.store.rows import Block, RowBuffer
from attnlens.store.shards import ShardedRows
from attnlens.store.sinks import REGION_BYTES, pieces, require


def runs(lanes: Sequence[int]) -> list[tuple[slice, slice]]:
    """Lanes in rising order, neighbours together: which they are, and where among `lanes`."""
    breaks = (np.flatnonzero(np.diff(lanes) != 1) + 1).tolist()
    places = [slice(start, stop) for start, stop in pairwise([0, *breaks, len(lanes)])]
    return [(slice(lanes[place.start], lanes[place.stop - 1] + 1), place) for place in places]


class LaneSink:
    """Rows along one axis of an array (lane, …); lanes that are not `needed` keep the fill value.

    `n_prompt`: where a lane is a shard of its own, its rows of the prompt are written as soon as they fill one, so
    that they need not wait for the other lanes. 0: rows wait for all lanes. Rows before `origin` hold the fill value.
    """

    def __init__(
        self,
        name: str,
        array: ShardedRows,
        axis: int,
        needed: Sequence[int],
        *,
        n_prompt: int = 0,
        origin: int = 0,
    ) -> None:
        self._array = array
        self._origin = origin
        self._axis = axis
        self._needed = needed
        self._n_prompt = n_prompt
        self._buffer = RowBuffer(name, array.shape[0], needed)
        self._written = np.zeros(array.shape[0], np.int64)

    @property
    def buffers(self) -> tuple[RowBuffer, ...]:
        """Where rows wait."""
        return (self._buffer,)

    def add(self, first: int, lanes: slice, values: NDArray[Any]) -> None:
        """Keep values (lane, …) of some lanes, rows from `first` on."""
        low, high, _ = lanes.indices(self._array.shape[0])
        count = values.shape[self._axis]
        self._buffer.add(Block(slice(low, high), first, count, 0, values))
        stop = min(first + count, self._n_prompt)
        if first >= self._n_prompt:
            return
        if stop < self._n_prompt:
            stop -= stop % self._array.shard[self._axis]
        for lane in range(low, high):
            self._write_lane(lane, stop)

    def commit(self, start: int, stop: int) -> None:
        """Write every row in start … stop - 1 that is not on disk yet."""
        for lane in self._needed if self._n_prompt else ():
            self._write_lane(lane, min(stop, self._n_prompt))
        start = max(start, min(stop, self._n_prompt))
        if start >= stop:
            return
        require(self._buffer, max(start, self._origin), stop)
        width = math.prod(self._array.shape) // max(1, self._array.shape[self._axis]) * self._array.dtype.itemsize
        for first, last in pieces(start, stop, max(1, REGION_BYTES // max(1, width))):
            self._write(slice(0, self._array.shape[0]), first, last)
        self._written[:] = stop
        self._buffer.drop(stop)

    def _write_lane(self, lane: int, stop: int) -> None:
        start = int(self._written[lane])
        if stop <= start:
            return
        lanes = slice(lane, lane + 1)
        require(self._buffer, start, stop, lanes)
        for first, last in pieces(start, stop, self._array.shard[self._axis]):
            self._write(lanes, first, last)
        self._written[lane] = stop
        self._buffer.drop(stop, lane)

    def _write(self, lanes: slice, start: int, stop: int) -> None:
        axis = self._axis
        shape = list(self._array.shape)
        shape[0], shape[axis] = lanes.stop - lanes.start, stop - start
        region = np.full(shape, self._array.fill, self._array.dtype)
        for block in self._buffer.overlapping(start, stop, lanes):
            low, high = max(start, block.first), min(stop, block.first + block.count)
            first, last = max(lanes.start, block.lane.start), min(lanes.stop, block.lane.stop)
            # A layer may have fewer heads than the array has room for: the others keep the fill value.
            here = [slice(0, size) for size in block.values.shape]
            there = list(here)
            here[0] = slice(first - lanes.start, last - lanes.start)
            there[0] = slice(first - block.lane.start, last - block.lane.start)
            here[axis], there[axis] = slice(low - start, high - start), slice(low - block.first, high - block.first)
            region[tuple(here)] = block.values[tuple(there)]
        begin = [0] * len(shape)
        begin[0], begin[axis] = lanes.start, start
        self._array.write(tuple(begin), region)
