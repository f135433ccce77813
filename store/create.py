"""Creating the arrays of a capture from the table in `schemas.arrays`, with our codecs and no zarr defaults."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from attnlens.schemas.arrays import ARRAY, FILL, VectorDType
from attnlens.schemas.version import NAMESPACE
from attnlens.store.encode import ZSTD_LEVEL
from attnlens.store.layout import ChunkLayout


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
    vectors: VectorDType | None = None,
) -> zarr.Array[Any]:
    """Create array `name` of the table in `group`, filled with its fill value, and open it for writing.

    `vectors` is the dtype of the capture's queries and keys.
    """
    spec = ARRAY[name]
    dtype = spec.storage(vectors)
    about = {"unit": spec.unit, "meaning": spec.meaning}
    if spec.dtype == "model" and dtype == "uint16":
        about["bits_of"] = "bfloat16"
    return zarr.create_array(
        store,
        name=f"{group}/{name}",
        shape=shape,
        dtype=str if dtype == "string" else dtype,
        chunks=layout.chunk,
        shards=layout.shard,
        filters=None,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        fill_value=FILL[dtype],
        attributes={NAMESPACE: about},
        dimension_names=spec.axes,
        # A committed row is stored even where it equals the fill value, so that a missing chunk is always damage.
        config={"write_empty_chunks": True},
    )
