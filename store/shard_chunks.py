"""Chunks of a shard decoded directly: several times as fast as zarr's way, where a row needs all keys there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.store.digests import ABSENT, ENTRY_BYTES, read_index, uncrc
from attnlens.store.encode import CRC_BYTES
from attnlens.store.packing import packing_of
from attnlens.store.places.place import Place


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
    path = f"{array.path}/{array.metadata.encode_chunk_key(shard)}"
    whole = place.read(path) if len(wanted) * 2 > count else None
    length = count * ENTRY_BYTES + CRC_BYTES
    index = read_index(place.read(path, -length) if whole is None else whole[-length:], count)
    found = []
    for position in wanted:
        start, size = index[int(np.ravel_multi_index(position, inside))].tolist()
        if start == ABSENT:
            raise ValueError("a committed row is missing from it")
        data = place.read(path, start, start + size) if whole is None else whole[start : start + size]
        found.append(packing.decode(uncrc(data), array.chunks, array.dtype))
    return found
