"""Creating the arrays of a capture from the table in `schemas.arrays`, with our codecs and no zarr defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from attnlens.schemas.arrays import ARRAY, MODEL_DTYPES, ArraySpec
from attnlens.schemas.version import NAMESPACE
from attnlens.store.bfloat16 import BFLOAT16, BITS, NAN, WHOLE_EXPONENT
from attnlens.store.digests import DIGESTS, PER_FILE, Hashed, hash_arrays, table_of
from attnlens.store.layout import ChunkLayout, list_layout
from attnlens.store.packing import packing_for
from attnlens.store.quantize import ENCODING


class CountingStore(LocalStore):
    """A folder that knows how many bytes were put into it."""

    written = 0

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file atomically."""
        await super().set(key, value)
        self.count(len(value))

    def count(self, size: int) -> None:
        """`size` more bytes were put into a file of the folder, by whatever way."""
        self.written += size


def create_array(
    store: LocalStore,
    group: str,
    name: str,
    shape: tuple[int, ...],
    layout: ChunkLayout,
    *,
    spec: ArraySpec | None = None,
    model_dtype: str | None = None,
    about: Mapping[str, Any] | None = None,
    fill: int | None = None,
    sparse: bool = False,
) -> zarr.Array[Any]:
    """Create array `name` of the table in `group`, filled with its fill value, and open it for writing.

    Args:
        store: Where.
        group: Name of the capture.
        name: Name of the array.
        shape: Its shape.
        layout: Its chunks and shards.
        spec: Its row, where the table has none of that name (arrays of a further lens).
        model_dtype: What a row with the dtype "model" means here.
        about: Further attributes of ours.
        fill: The fill value, where an encoding has its own.
        sparse: Whether chunks that equal the fill value are left out. In a capture that is written none is: a committed
            row is stored even there, so that a missing chunk is always damage.
    """
    spec = spec or ARRAY[name]
    bits = spec.dtype == "model" and model_dtype == BFLOAT16
    encoded = {BITS: BFLOAT16, ENCODING: WHOLE_EXPONENT} if bits else {}
    ours = {"unit": spec.unit, "meaning": spec.meaning} | encoded | dict(about or {})
    dtype = _dtype(spec, model_dtype)
    packing = packing_for(name, dtype if isinstance(dtype, str) else "string", sharded=layout.shard is not None)
    itemsize = 1 if dtype is str else np.dtype(dtype).itemsize
    return zarr.create_array(
        store,
        name=f"{group}/{name}",
        shape=shape,
        dtype=dtype,
        chunks=layout.chunk,
        shards=layout.shard,
        filters=packing.filters(),
        compressors=packing.compressors(layout.chunk, itemsize),
        fill_value=NAN if bits else spec.fill if fill is None else fill,
        attributes={NAMESPACE: ours},
        dimension_names=spec.axes,
        config={"write_empty_chunks": not sparse},
    )


def write_digests(
    store: LocalStore, group: str, folder: Path, old: Mapping[str, Hashed] | None = None
) -> dict[str, str]:
    """Write the digests of the chunks of large arrays in a capture's folder, if there are some.

    `old`: digests that are taken over, by array. Returns the sha256 of the files that were read whole for it.
    """
    hashed = hash_arrays(folder)
    whole = {path: digest for one in hashed.values() for path, digest in one.files.items()}
    if not (hashed := {**(old or {}), **hashed}):
        return whole
    table, arrays = table_of(hashed)
    chunk = (*list_layout(len(table), PER_FILE).chunk, table.shape[1])
    array = create_array(store, group, DIGESTS, table.shape, ChunkLayout(chunk), about={"arrays": arrays})
    array[:] = table
    return whole


def _dtype(spec: ArraySpec, model_dtype: str | None) -> Any:
    if spec.dtype == "model":
        return MODEL_DTYPES[model_dtype or "float32"]
    return str if spec.dtype == "string" else spec.dtype
