"""The codecs of a store as a reader runs them: none makes more of a chunk than the chunk can hold.

A few bytes of zstd may claim to be gigabytes, and a list of strings may claim billions. Both are looked at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from zarr import codecs
from zarr.registry import register_codec

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

TEXT_BYTES = 1 << 26
"""The most that one chunk of strings may hold; a chunk of 16384 tokens holds about 1 MiB."""
MAGIC = b"\x28\xb5\x2f\xfd"
NAMES = {"zstd": "attnlens_zstd", "vlen-utf8": "attnlens_vlen_utf8"}


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


def content_size(frame: bytes) -> int | None:
    """Bytes that a zstd frame says it holds, None if it does not say; RFC 8878, 3.1.1.1."""
    if len(frame) < 6 or not frame.startswith(MAGIC):
        return None
    flags = frame[4]
    single, width = flags >> 5 & 1, (0, 2, 4, 8)[flags >> 6]
    if flags >> 6 == 0:
        width = single
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    if not width or len(frame) < at + width:
        return None
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


def _check_frame(chunk: Buffer, spec: ArraySpec) -> None:
    item = getattr(spec.dtype, "item_size", None)
    most = TEXT_BYTES if item is None or not _is_number(spec) else math.prod(spec.shape) * int(item)
    check_size(chunk.to_bytes()[:18], most)


def check_size(frame: bytes, most: int) -> None:
    """Refuse a zstd frame that holds more than `most` bytes, or does not say.

    Raises:
        ValueError: it does.
    """
    size = content_size(frame)
    if size is None:
        raise ValueError("a zstd frame does not say how much it holds")
    if size > most:
        raise ValueError(f"a zstd frame holds {size} bytes where a chunk has no more than {most}")


def _is_number(spec: ArraySpec) -> bool:
    return spec.dtype.to_native_dtype().kind in "biuf"


def _check_count(chunk: Buffer, spec: ArraySpec) -> None:
    count = int.from_bytes(chunk.to_bytes()[:4], "little")
    if count != math.prod(spec.shape):
        raise ValueError(f"a chunk of {math.prod(spec.shape)} strings says it holds {count}")
