"""Queries and keys on their way to the disk: handed over layer by layer, kept token by token.

What a long prompt hands over before its last layer is done may be more than memory should hold; it then waits in an
unnamed file in the store's folder, so that one order of chunks serves every length.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import StoreError
from attnlens.store.rows import Block, RowBuffer
from attnlens.store.shards import ShardedRows


class VectorSink:
    """Rows of `attention_q` or `attention_k` (token, layer, head, feature). `layers` must hand over every token.

    `hold`: bytes that may wait in memory.
    """

    def __init__(self, name: str, array: ShardedRows, layers: Sequence[int], folder: Path, hold: int) -> None:
        self._array = array
        self._buffer = RowBuffer(name, array.shape[1], layers)
        self._layers = frozenset(layers)
        self._folder = folder
        self._hold = hold
        self._held = 0
        self._file: _Overflow | None = None

    @property
    def buffers(self) -> tuple[RowBuffer, ...]:
        """Where rows wait."""
        return (self._buffer,)

    def add(self, first_token: int, layers: Sequence[int], values: NDArray[Any]) -> None:
        """Keep values (layer, token, head, feature) of the layers named; layers that are not wanted are passed over."""
        for layer, rows in zip(layers, values, strict=True):
            if layer not in self._layers:
                continue
            kept: NDArray[Any] | _Stretch = rows
            if self._held + rows.nbytes > self._hold:
                self._file = self._file or _Overflow(self._folder)
                kept = self._file.keep(rows)
            else:
                self._held += rows.nbytes
            self._buffer.add(Block(slice(layer, layer + 1), first_token, rows.shape[0], 0, kept))

    def commit(self, start: int, stop: int) -> None:
        """Write the tokens start … stop - 1, shard by shard.

        Raises:
            StoreError: a layer did not hand over all of them.
        """
        if start >= stop:
            return
        absent = self._buffer.missing(start, stop)
        if absent is not None:
            layer, token = absent
            raise StoreError(
                f"{self._buffer.name}: row {token} of index {layer} is to be committed but was never handed over"
            )
        size = self._array.shard[0]
        for first in range(start - start % size, stop, size):
            low, high = max(first, start), min(first + size, stop)
            region = np.full((high - low, *self._array.shape[1:]), self._array.fill, self._array.dtype)
            for block in self._buffer.overlapping(low, high):
                begin, end = max(low, block.first), min(high, block.first + block.count)
                rows = block.values[begin - block.first : end - block.first]
                region[begin - low : end - low, block.lane.start] = rows
            self._array.write((low, 0, 0, 0), region)
        self._drop(stop)

    def _drop(self, stop: int) -> None:
        self._buffer.drop(stop)
        left = [block.values for block in self._buffer.overlapping(0, self._array.shape[0])]
        self._held = sum(values.nbytes for values in left if isinstance(values, np.ndarray))
        if self._file is not None and not any(isinstance(values, _Stretch) for values in left):
            self._file.close()
            self._file = None


class _Overflow:
    """An unnamed file: it takes no room in memory, and is gone with the process."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, suffix=".partial")  # noqa: SIM115  (closed by `close`)
        self._size = 0

    def keep(self, values: NDArray[Any]) -> _Stretch:
        """Append `values`."""
        data = np.ascontiguousarray(values).data.cast("B")
        stretch = _Stretch(self._file.fileno(), self._size, values.shape, values.dtype)
        while data:
            data = data[os.pwrite(self._file.fileno(), data, self._size) :]
            self._size = stretch.offset + stretch.nbytes - len(data)
        return stretch

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()


class _Stretch:
    """An array (token, head, feature) in such a file. A slice along its first axis reads it."""

    def __init__(self, file: int, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file, self.offset, self.shape, self._dtype = file, offset, shape, dtype
        self.nbytes = int(np.prod(shape)) * dtype.itemsize

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        row = self.nbytes // self.shape[0]
        data = os.pread(self._file, (stop - start) * row, self.offset + start * row)
        return np.frombuffer(data, self._dtype).reshape(stop - start, *self.shape[1:])
