"""One array of a capture, written anew with some cells gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from attnlens.schemas.version import NAMESPACE
from attnlens.store.chunks import Region, file_regions, grid, read
from attnlens.store.descriptions import ours
from attnlens.store.named import NamedArray
from attnlens.store.packing import packing_for

PACKED_LEVEL = 9
"""A cropped store is written once and sent often: zstd 9 is worth its time, 19 gained 1 % more."""

Cells = NDArray[Any]
Change = Callable[[Cells, Region], Cells]
"""From cells of a region, and the region, to what is written there. May reduce the last axis."""


def part_of(mask: NDArray[np.bool_], part: slice) -> NDArray[np.bool_]:
    """A part of a mask over an axis; false where the array is longer, as it is while a capture is not complete."""
    found = mask[part]
    return np.pad(found, (0, part.stop - part.start - len(found)))


def rewrite(
    array: NamedArray,
    store: LocalStore,
    path: str,
    change: Change,
    *,
    dtype: str | None = None,
    ranks: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write `array` to `path` in `store`, changed, file by file.

    Args:
        array: Read raw: what is not committed is copied as it is.
        store: Where.
        path: Group and name of the new array.
        change: What becomes of the cells.
        dtype: Of the new array, the old one's if None.
        ranks: Length of the last axis, if it is cut.
        about: What is added to our attributes.

    Raises:
        StoreError: a chunk is damaged or missing.
    """
    old = array.zarr
    array.check_there()
    shape, chunks, shards = old.shape, old.chunks, old.shards
    if ranks is not None:
        shape, chunks = (*shape[:-1], ranks), (*chunks[:-1], ranks)
        shards = None if shards is None else (*shards[:-1], ranks)
    attributes: dict[str, Any] = dict(old.attrs.asdict())
    attributes[NAMESPACE] = {**ours(attributes), **(about or {})}
    text = array.kind == "string"
    kind: Any = str if text else dtype or old.dtype
    fill = 255 if dtype == "uint8" and old.dtype != np.uint8 else old.fill_value
    name = "string" if text else np.dtype(kind).name
    packing = packing_for(path.rpartition("/")[2], name, sharded=shards is not None)
    new = zarr.create_array(
        store,
        name=path,
        shape=shape,
        dtype=kind,
        chunks=chunks,
        shards=shards,
        filters=packing.filters(),
        compressors=packing.compressors(chunks, 1 if text else np.dtype(kind).itemsize, PACKED_LEVEL),
        fill_value=fill,
        attributes=attributes,
        dimension_names=array.axes,
        config={"write_empty_chunks": False},
    )
    for region in file_regions(old.shape, grid(old)):
        values = change(read(old, region), region)
        if ranks is not None:
            values = values[..., :ranks]
            region = (*region[:-1], slice(0, ranks))
        new[region] = values
