"""The codecs of a store as a reader runs them: none makes more of a chunk than the chunk can hold.

A few bytes of zstd may claim to be gigabytes, and a list of strings may claim billions. Both are looked at first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from zarr import codecs
from zarr.registry import register_codec

from attnlens.store.frames import check_size
from attnlens.store.planes import decode_planes, encode_planes

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

TEXT_BYTES = 1 << 26
"""The most that one chunk of strings may hold; a chunk of 16384 tokens holds about 1 MiB."""
NAMES = {"zstd": "attnlens_zstd", "blosc": "attnlens_blosc", "vlen-utf8": "attnlens_vlen_utf8"}


class BoundedZstd(codecs.ZstdCodec):
    """zstd that refuses a frame whose content is larger than the chunk."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From the codec's JSON, under whatever name."""
        return super().from_dict({**data, "name": "zstd"})

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check_frame(chunk_bytes, chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check_frame(chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


class PlanesCodec(codecs.BloscCodec):
    """blosc without blosc: the container is made and taken apart by our own code, which trusts no size in it."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From the codec's JSON, under whatever name."""
        return super().from_dict({**data, "name": "blosc"})

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        values = decode_planes(chunk_bytes.to_bytes(), _most(chunk_spec))
        return chunk_spec.prototype.buffer.from_array_like(values)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def _encode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data = encode_planes(chunk_bytes.as_numpy_array().reshape(-1).view(np.uint8), self.typesize)
        return chunk_spec.prototype.buffer.from_bytes(data)

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._encode_sync, chunk_bytes, chunk_spec)


class VLenUTF8Codec(codecs.VLenUTF8Codec):
    """Strings, as many as the chunk has cells. Named as zarr's own, because zarr asks for the name."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From the codec's JSON, under whatever name."""
        return super().from_dict({**data, "name": "vlen-utf8"})

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        _check_count(chunk_bytes, chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        _check_count(chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


register_codec(NAMES["zstd"], BoundedZstd)
register_codec(NAMES["blosc"], PlanesCodec)
register_codec(NAMES["vlen-utf8"], VLenUTF8Codec)


def bounded(document: Mapping[str, Any]) -> dict[str, Any]:
    """An array's zarr.json that zarr opens with these codecs."""
    return {**document, "storage_transformers": (), "codecs": _renamed(document["codecs"])}


def _renamed(listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for codec in listed:
        new = {**codec, "name": NAMES.get(codec["name"], codec["name"])}
        configuration = codec.get("configuration")
        if codec["name"] == "sharding_indexed" and isinstance(configuration, Mapping):
            inner = {key: _renamed(configuration[key]) for key in ("codecs", "index_codecs") if key in configuration}
            new["configuration"] = {**configuration, **inner}
        found.append(new)
    return found


def _check_frame(chunk: Buffer, spec: ArraySpec) -> None:
    check_size(chunk.to_bytes()[:18], _most(spec))


def _most(spec: ArraySpec) -> int:
    """Bytes that a chunk may hold."""
    item = getattr(spec.dtype, "item_size", None)
    return TEXT_BYTES if item is None or not _is_number(spec) else math.prod(spec.shape) * int(item)


def _is_number(spec: ArraySpec) -> bool:
    return spec.dtype.to_native_dtype().kind in "biuf"


def _check_count(chunk: Buffer, spec: ArraySpec) -> None:
    count = int.from_bytes(chunk.to_bytes()[:4], "little")
    if count != math.prod(spec.shape):
        raise ValueError(f"a chunk of {math.prod(spec.shape)} strings says it holds {count}")
