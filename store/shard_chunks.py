"""Chunks of a shard decoded directly: several times as fast as zarr's way, where a row needs all keys there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.store.encode import CRC_BYTES
from attnlens.store.packing import packing_of
from attnlens.store.places.place import Place
from attnlens.store.shards import ABSENT, ENTRY_BYTES


def read_chunks(
    array: zarr.Array[Any], place: Place, shard: tuple[int, ...], wanted: Sequence[tuple[int, ...]]
) -> list[NDArray[Any]]:
    """Chunks of one shard, by their position inside it, each in the array's dtype and chunk shape.

    The array is one that `packing_of` knows.

    Raises:
        ValueError: a chunk is damaged or not there.
        OSError: the file cannot be read.
    """
    packing = packing_of(array)
    assert array.shards is not None
    assert packing is not None
    inside = tuple(size // chunk for size, chunk in zip(array.shards, array.chunks, strict=True))
    count = int(np.prod(inside))
    data = place.read(f"{array.path}/{array.metadata.encode_chunk_key(shard)}")
    tail = data[-(count * ENTRY_BYTES + CRC_BYTES) :]
    if len(tail) < count * ENTRY_BYTES + CRC_BYTES:
        raise ValueError("the shard is shorter than its index")
    index = np.frombuffer(_checked(tail), "<u8").reshape(count, 2)
    found = []
    for position in wanted:
        start, size = index[int(np.ravel_multi_index(position, inside))].tolist()
        if start == ABSENT:
            raise ValueError("a committed row is missing from it")
        found.append(packing.decode(_checked(data[start : start + size]), array.chunks, array.dtype))
    return found


def _checked(data: bytes) -> bytes:
    """What stands before a crc32c, which must be that of it."""
    body = data[:-CRC_BYTES]
    if int(google_crc32c.value(body)).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
        raise ValueError("its checksum differs")
    return body
