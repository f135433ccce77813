"""Writing rows into shards: chunks are encoded side by side, then the file is replaced by one that has them too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.store.bfloat16 import from_whole_exponent, has_whole_exponent, to_whole_exponent
from attnlens.store.descriptions import ours
from attnlens.store.encode import CRC_BYTES, checksum
from attnlens.store.files import write_atomic
from attnlens.store.packing import packing_of

ABSENT = np.uint64(2**64 - 1)
ENTRY_BYTES = 16
"""An entry of a shard's index: offset and length of one chunk, both uint64; ABSENT twice if the chunk is not there."""

Region = tuple[slice, ...]
_pool = ThreadPoolExecutor(2, "attnlens-encode")


class ShardedRows:
    """A sharded array that is written row after row along one axis. Bits of bfloat16 come in their own order."""

    def __init__(
        self, array: zarr.Array[Any], root: Path, axis: int, *, keep_tail: bool, wrote: Callable[[int], None]
    ) -> None:
        """`keep_tail`: rows of a chunk that is not full stay in memory, so that they need not be decoded again."""
        assert array.shards is not None
        packing = packing_of(array)
        assert packing is not None
        self._array, self._packing = array, packing
        self._whole_exponent = has_whole_exponent(str(array.dtype), ours(array.attrs.asdict()))
        self._folder = root / array.path
        self._axis = axis
        self._chunk, self._shard = array.chunks, array.shards
        self._tail: tuple[int, NDArray[Any]] | None = None
        self._keep = keep_tail
        self._wrote = wrote

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the cells."""
        return np.dtype(self._array.dtype)

    @property
    def fill(self) -> Any:
        """The value of a cell that was never written."""
        fill = self._array.fill_value
        return from_whole_exponent(np.asarray(fill)) if self._whole_exponent else fill

    @property
    def shard(self) -> tuple[int, ...]:
        """Shape of a shard."""
        return self._shard

    def write(self, start: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write a region that begins at `start`.

        Along every axis but that of the rows it begins at a chunk, and ends at one or at the end of the array.
        """
        axis, rows = self._axis, self._chunk[self._axis]
        first = start[axis]
        stop = first + values.shape[axis]
        before = first % rows
        if before:
            if self._tail is None or self._tail[0] != first or self._tail[1].shape[axis] != before:
                part = tuple(slice(low, low + size) for low, size in zip(start, values.shape, strict=True))
                self._array[part] = self._stored(values)
                self._tail = None
                return
            values = np.concatenate([self._tail[1], values], axis=axis)
            start = (*start[:axis], first - before, *start[axis + 1 :])
        if self._keep:
            after = stop % rows
            tail = np.take(values, range(values.shape[axis] - after, values.shape[axis]), axis)
            self._tail = (stop, tail) if after else None
        for shard, region in self._shards(start, values):
            self._write_shard(shard, region, start, values)

    def _shards(self, start: tuple[int, ...], values: NDArray[Any]) -> list[tuple[tuple[int, ...], Region]]:
        """The shards that a region touches, each with the part of it that is inside, in cells of the array."""
        axes = []
        for low, size, shard in zip(start, values.shape, self._shard, strict=True):
            high = low + size
            axes.append(
                [
                    (index, slice(max(low, index * shard), min(high, (index + 1) * shard)))
                    for index in range(low // shard, -(-high // shard))
                ]
            )
        return [
            (tuple(index for index, _ in parts), tuple(part for _, part in parts)) for parts in itertools.product(*axes)
        ]

    def _write_shard(
        self, shard: tuple[int, ...], region: Region, start: tuple[int, ...], values: NDArray[Any]
    ) -> None:
        inside = tuple(size // chunk for size, chunk in zip(self._shard, self._chunk, strict=True))
        axes = [
            range(part.start // chunk, -(-part.stop // chunk))
            for part, chunk in zip(region, self._chunk, strict=True)
        ]  # fmt: skip
        places, blocks = [], []
        for block in itertools.product(*axes):
            cells = tuple(
                slice(index * chunk - low, min((index + 1) * chunk, part.stop) - low)
                for index, chunk, low, part in zip(block, self._chunk, start, region, strict=True)
            )
            within = tuple(index - at * count for index, at, count in zip(block, shard, inside, strict=True))
            places.append(int(np.ravel_multi_index(within, inside)))
            blocks.append(values[cells])
        encoded = dict(zip(places, _pool.map(self._encode, blocks), strict=True))
        path = self._folder / self._array.metadata.encode_chunk_key(shard)
        self._wrote(update_shard(path, math.prod(inside), encoded))

    def _stored(self, values: NDArray[Any]) -> NDArray[Any]:
        return to_whole_exponent(values) if self._whole_exponent else values

    def _encode(self, block: NDArray[Any]) -> bytes:
        block = self._stored(block)
        if block.shape != self._chunk:
            whole = np.full(self._chunk, self._array.fill_value, self._array.dtype)
            whole[tuple(map(slice, block.shape))] = block
            block = whole
        return self._packing.encode(block)


def update_shard(path: Path, count: int, new: Mapping[int, bytes]) -> int:
    """Put encoded chunks into the shard at `path`, which holds up to `count`; returns the bytes written.

    The file is replaced atomically. Chunks are in order of their number, the index is at the end.
    """
    old = path.read_bytes() if path.exists() else b""
    index = np.full((count, 2), ABSENT, "<u8")
    if old:
        index = np.frombuffer(old[-(count * ENTRY_BYTES + CRC_BYTES) : -CRC_BYTES], "<u8").reshape(count, 2).copy()
    parts: list[bytes | memoryview] = []
    view, offset = memoryview(old), 0
    for place in sorted({*np.flatnonzero(index[:, 0] != ABSENT).tolist(), *new}):
        begin, size = index[place].tolist()
        data = new[place] if place in new else view[begin : begin + size]
        index[place] = offset, len(data)
        parts.append(data)
        offset += len(data)
    entries = index.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, b"".join([*parts, entries, checksum(entries)]))
    return offset + len(entries) + CRC_BYTES
