"""Reading regions of an array, and naming the chunk when one cannot be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.schemas.errors import StoreError
from attnlens.store.descriptions import default_limits
from attnlens.store.faults import DECODE_ERRORS, damaged
from attnlens.store.places import Place
from attnlens.store.places.zarr_store import PlaceStore

Selection = tuple[slice | NDArray[np.intp], ...]
Region = tuple[slice, ...]


def read(array: zarr.Array[Any], selection: Selection) -> NDArray[Any]:
    """Cells of `array`; every axis of the selection is kept.

    Args:
        array: The array.
        selection: For each axis a slice with positive step inside the shape, or positions.

    Raises:
        StoreError: a chunk is damaged; it is named.
    """
    _check_size(array, selection)
    try:
        plain = all(isinstance(part, slice) for part in selection)
        values = array[selection] if plain else array.oindex[selection]
    except DECODE_ERRORS as error:
        raise damaged(array.path, first_damaged(array, selection), error) from error
    return np.asarray(values)


def _check_size(array: zarr.Array[Any], selection: Selection) -> None:
    """Refuse to fill memory with what is not there: a shape costs a store nothing."""
    limits = default_limits()
    counts = (len(range(*part.indices(size))) if isinstance(part, slice) else len(part)
              for part, size in zip(selection, array.shape, strict=True))  # fmt: skip
    wanted = math.prod(counts) * max(1, array.dtype.itemsize)
    if wanted <= limits.read_bytes:
        return
    store = array.store_path.store
    files = store.sizes(array.path) if isinstance(store, PlaceStore) else 0
    if wanted > files * limits.read_ratio:
        raise StoreError(
            f"{array.path}: {wanted} bytes would be read from files of {files} bytes; if you trust the store, "
            "`lens --no-limits` reads it"
        )


def grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Shape of what one file holds."""
    return array.shards or array.chunks


def region_of(block: Sequence[int], step: Sequence[int], shape: Sequence[int]) -> Region:
    """The cells of one block of a grid of blocks `step`."""
    return tuple(
        slice(index * size, min((index + 1) * size, length))
        for index, size, length in zip(block, step, shape, strict=True)
    )


def file_regions(shape: Sequence[int], step: Sequence[int]) -> Iterator[Region]:
    """Regions of an array that are a file each, in order."""
    blocks = [range(-(-length // size)) for length, size in zip(shape, step, strict=True)]
    return (region_of(block, step, shape) for block in itertools.product(*blocks))


def regions(array: zarr.Array[Any], selection: Selection, step: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Coordinates, in a grid of blocks `step`, of the blocks that the selection touches."""
    axes = []
    for part, size, length in zip(selection, step, array.shape, strict=True):
        cells = np.arange(length)[part] if isinstance(part, slice) else part
        axes.append([int(block) for block in np.unique(cells // size)])
    return itertools.product(*axes)


def first_damaged(array: zarr.Array[Any], selection: Selection) -> str | None:
    """Key of the first file that the selection touches and that cannot be decoded, as "c/0/0/3/0"."""
    step = grid(array)
    for block in itertools.islice(regions(array, selection, step), 4096):
        cells = region_of(block, step, array.shape)
        part = tuple(_within(cell, axis) for cell, axis in zip(cells, selection, strict=True))
        try:
            array[part]
        except DECODE_ERRORS:
            return array.metadata.encode_chunk_key(block)
    return None


def missing_chunk(array: zarr.Array[Any], place: Place, selection: Selection) -> str:
    """Key of the first file that the selection touches and that does not exist; else of the first it touches."""
    keys = [
        array.metadata.encode_chunk_key(block)
        for block in itertools.islice(regions(array, selection, grid(array)), 4096)
    ]
    return next((key for key in keys if not place.exists(f"{array.path}/{key}")), keys[0])


def _within(cell: slice, part: slice | NDArray[np.intp]) -> slice:
    """The smallest slice that holds what `part` selects inside `cell`."""
    cells = np.arange(part.start or 0, part.stop, part.step or 1) if isinstance(part, slice) else part
    inside = cells[(cells >= cell.start) & (cells < cell.stop)]
    return slice(int(inside.min()), int(inside.max()) + 1)
