"""Where rows go: one sink per kind of array, between blocks as they arrive and the regions that one write covers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.schemas.errors import StoreError
from attnlens.store.layout import AttentionOrder
from attnlens.store.rows import Block, RowBuffer
from attnlens.store.shards import ShardedRows

REGION_BYTES = 1 << 23
"""About the most memory that one write of many small rows takes."""


class AttentionSink:
    """Rows of `attention_weight` (layer, head, query, key).

    In the order "rows" a row is written once all its layers are there; in the order "layers" the prompt's rows of a
    layer are written as soon as they fill a shard.
    """

    def __init__(self, array: ShardedRows, order: AttentionOrder, n_prompt: int, layers: Sequence[int]) -> None:
        self._array = array
        self._by_layer = order == "layers"
        self._n_prompt = n_prompt
        self._layers = layers
        self._buffer = RowBuffer("attention_weight", array.shape[0], layers)
        self._written = np.zeros(array.shape[0], np.int64)

    @property
    def buffers(self) -> tuple[RowBuffer, ...]:
        """Where rows wait."""
        return (self._buffer,)

    def add(self, layer: int, first_query: int, first_key: int, weights: NDArray[np.float16]) -> None:
        """Keep rows (head, query, key) of one layer; write the prompt's at once where layers are shards."""
        count = weights.shape[1]
        self._buffer.add(Block(slice(layer, layer + 1), first_query, count, first_key, weights))
        stop = first_query + count
        if not self._by_layer or first_query >= self._n_prompt:
            return
        if stop < self._n_prompt:
            stop -= stop % self._array.shard[2]
        self._write_layer(layer, stop)

    def commit(self, start: int, stop: int) -> None:
        """Write every row in start … stop - 1 that is not on disk yet."""
        if self._by_layer:
            for layer in self._layers:
                self._write_layer(layer, max(start, min(stop, self._n_prompt)))
            start = max(start, min(stop, self._n_prompt))
        if start == stop:
            return
        require(self._buffer, start, stop)
        n_layer, n_head, _, n_key = self._array.shape
        shard = self._array.shard
        lanes = shard[0]
        if self._by_layer:
            lanes = max(1, REGION_BYTES // (2 * n_head * n_key * min(shard[2], stop - start)))
        for first, last in pieces(start, stop, shard[2]):
            for low, high in pieces(0, n_layer, lanes):
                self._write(slice(low, high), first, last)
        self._written[:] = stop
        self._buffer.drop(stop)

    def _write_layer(self, layer: int, stop: int) -> None:
        start = int(self._written[layer])
        if stop <= start:
            return
        lane = slice(layer, layer + 1)
        require(self._buffer, start, stop, lane)
        for first, last in pieces(start, stop, self._array.shard[2]):
            self._write(lane, first, last)
        self._written[layer] = stop
        self._buffer.drop(stop, layer)

    def _write(self, lanes: slice, start: int, stop: int) -> None:
        """Write rows of some layers, in pieces of whole shards, columns outside a block as zeros."""
        shard = self._array.shard
        _, heads, _, keys = self._array.shape
        blocks = self._buffer.overlapping(start, stop, lanes)
        depth, rows = lanes.stop - lanes.start, stop - start
        for head, last_head in pieces(0, heads, shard[1]):
            for key, last_key in pieces(0, keys, shard[3]):
                region = np.zeros((depth, last_head - head, rows, last_key - key), np.float16)
                seen = np.zeros((depth, rows), bool)
                for block in blocks:
                    first, last = max(start, block.first), min(stop, block.first + block.count)
                    left, right = max(key, block.start), min(last_key, block.start + block.values.shape[2])
                    lane, part = block.lane.start - lanes.start, slice(first - start, last - start)
                    seen[lane, part] = True
                    here = max(0, min(last_head, block.values.shape[0]) - head)
                    region[lane, here:, part] = np.nan  # heads that this layer does not have
                    if left < right:
                        region[lane, :here, part, left - key : right - key] = block.values[
                            head : head + here,
                            first - block.first : last - block.first,
                            left - block.start : right - block.start,
                        ]
                if not seen.all():
                    region.transpose(0, 2, 1, 3)[~seen] = np.nan
                self._array.write((lanes.start, head, start, key), region)


class ReductionSink:
    """Rows of `attention_max` and `attention_mean` (generated, layer, key), for queries from `origin` on."""

    def __init__(self, maximum: ShardedRows, mean: ShardedRows, origin: int, layers: Sequence[int]) -> None:
        self._arrays = (maximum, mean)
        self._origin = origin
        lanes = maximum.shape[1]
        self._buffers = (RowBuffer("attention_max", lanes, layers), RowBuffer("attention_mean", lanes, layers))

    @property
    def buffers(self) -> tuple[RowBuffer, ...]:
        """Where rows wait."""
        return self._buffers

    def add(self, layer: int, first_query: int, first_key: int, values: Sequence[NDArray[np.float16]]) -> None:
        """Keep rows (query, key) of one layer, in the order of the arrays."""
        for buffer, part in zip(self._buffers, values, strict=True):
            buffer.add(Block(slice(layer, layer + 1), first_query, part.shape[0], first_key, part))

    def commit(self, start: int, stop: int) -> None:
        """Write the rows in start … stop - 1."""
        start = max(start, self._origin)
        if start >= stop:
            return
        _, layers, keys = self._arrays[0].shape
        for array, buffer in zip(self._arrays, self._buffers, strict=True):
            require(buffer, start, stop)
            for first, last in pieces(start, stop, max(1, REGION_BYTES // (2 * layers * keys))):
                region = np.full((last - first, layers, keys), np.nan, np.float16)
                for block in buffer.overlapping(first, last):
                    low, high = max(first, block.first), min(last, block.first + block.count)
                    rows = region[low - first : high - first, block.lane.start]
                    rows[:] = 0
                    rows[:, block.start : block.start + block.values.shape[1]] = block.values[
                        low - block.first : high - block.first
                    ]
                array.write((first - self._origin, 0, 0), region)
            buffer.drop(stop)


class DepthSink:
    """Rows of one lens array (depth, token[, rank]); those of tokens before `origin` hold the fill value."""

    def __init__(self, name: str, array: ShardedRows, origin: int = 0) -> None:
        self._array = array
        self._origin = origin
        self._buffer = RowBuffer(name, array.shape[0], range(array.shape[0]))

    @property
    def buffers(self) -> tuple[RowBuffer, ...]:
        """Where rows wait."""
        return (self._buffer,)

    def add(self, first_token: int, depths: slice, values: NDArray[Any]) -> None:
        """Keep values (depth, token[, rank]) of some depths."""
        low, high, _ = depths.indices(self._array.shape[0])
        self._buffer.add(Block(slice(low, high), first_token, values.shape[1], 0, values))

    def commit(self, start: int, stop: int) -> None:
        """Write the tokens start … stop - 1."""
        if start >= stop:
            return
        require(self._buffer, max(start, self._origin), stop)
        depths, _, *tail = self._array.shape
        most = max(1, REGION_BYTES // (4 * depths * math.prod(tail)))
        for first, last in pieces(start, stop, most):
            region = np.full((depths, last - first, *tail), self._array.fill, self._array.dtype)
            for block in self._buffer.overlapping(first, last):
                low, high = max(first, block.first), min(last, block.first + block.count)
                region[block.lane, low - first : high - first] = block.values[:, low - block.first : high - block.first]
            self._array.write((0, first, *(0 for _ in tail)), region)
        self._buffer.drop(stop)


class ValueSink:
    """Values of a (token) array. What is never handed over keeps the fill value."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self._waiting: list[tuple[int, NDArray[Any]]] = []

    def add(self, first_token: int, values: NDArray[Any]) -> None:
        """Keep values (token)."""
        self._waiting.append((first_token, values))

    def commit(self) -> None:
        """Write what waits, neighbours together."""
        runs: list[tuple[int, list[NDArray[Any]]]] = []
        for first, values in self._waiting:
            if runs and runs[-1][0] + sum(map(len, runs[-1][1])) == first:
                runs[-1][1].append(values)
            else:
                runs.append((first, [values]))
        for first, parts in runs:
            joined = np.concatenate(parts)
            self._array[first : first + len(joined)] = joined
        self._waiting.clear()


def pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut start … stop at multiples of `size`."""
    while start < stop:
        last = min(stop, start - start % size + size)
        yield start, last
        start = last


def require(buffer: RowBuffer, start: int, stop: int, lanes: slice | None = None) -> None:
    """Refuse to commit rows that nobody handed over: a store never holds data that was not computed."""
    absent = buffer.missing(start, stop, lanes)
    if absent is not None:
        lane, row = absent
        raise StoreError(f"{buffer.name}: row {row} of index {lane} is to be committed but was never handed over")
