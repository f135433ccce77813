"""How the numbers of an array become the bytes of a chunk: in which order, and compressed in what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.abc.codec import Codec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec, ZstdCodec

from attnlens.store.bounded import PlanesCodec
from attnlens.store.encode import ZSTD_LEVEL, checksum, encode_numbers
from attnlens.store.frames import check_size
from attnlens.store.planes import decode_planes, encode_planes

_zstd = Zstd()


@dataclass(frozen=True)
class Packing:
    """`planes`: numbers byte by byte in a blosc container, else whole in a zstd frame. `order`: the axes as they are
    in the bytes, None where that is the order of the array.
    """

    planes: bool = False
    order: tuple[int, ...] | None = None

    def filters(self) -> list[TransposeCodec] | None:
        """Codecs of Zarr before the numbers are bytes."""
        return None if self.order is None else [TransposeCodec(order=self.order)]

    def compressors(self, chunk: Sequence[int], itemsize: int, level: int = ZSTD_LEVEL) -> list[Any]:
        """Codecs of Zarr after that; `level` of zstd is for numbers that stay whole."""
        if not self.planes:
            return [ZstdCodec(level=level), Crc32cCodec()]
        block = math.prod(chunk) * itemsize
        return [
            PlanesCodec(typesize=itemsize, cname="zstd", clevel=1, shuffle="shuffle", blocksize=block),
            Crc32cCodec(),
        ]

    def encode(self, values: NDArray[Any]) -> bytes:
        """One whole chunk, checksum included."""
        ordered = values if self.order is None else values.transpose(self.order)
        if not self.planes:
            return encode_numbers(ordered)
        plain = np.ascontiguousarray(ordered, ordered.dtype.newbyteorder("<"))
        data = encode_planes(plain.reshape(-1).view(np.uint8), plain.dtype.itemsize)
        return data + checksum(data)

    def decode(self, data: bytes, chunk: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The numbers of a chunk whose checksum was taken off.

        Raises:
            ValueError: they are damaged, or more than the chunk has.
        """
        most = math.prod(chunk) * dtype.itemsize
        if self.planes:
            raw = decode_planes(data, most).view(dtype.newbyteorder("<"))
        else:
            check_size(data, most)
            raw = np.frombuffer(_zstd.decode(data), dtype.newbyteorder("<"))
        if self.order is None:
            return raw.reshape(chunk)
        return raw.reshape([chunk[axis] for axis in self.order]).transpose(np.argsort(self.order))


FRAME, PLANES = Packing(), Packing(planes=True)
VECTORS = Packing(planes=True, order=(3, 1, 2, 0))
"""Queries and keys (token, layer, head, feature): the same number of neighbouring tokens is alike in sign and size."""


def packing_for(name: str, dtype: str, *, sharded: bool) -> Packing:
    """How array `name` of a capture is written."""
    if not sharded or name == "attention_weight" or dtype not in ("float32", "float16", "uint16"):
        return FRAME
    return VECTORS if name in ("attention_q", "attention_k") else PLANES


def packing_of(array: zarr.Array[Any]) -> Packing | None:
    """How the chunks of a sharded array were written; None where that is none of ours."""
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec) or _said(codecs[0], "index_location") != "end":
        return None
    inner, index = codecs[0].codecs, codecs[0].index_codecs
    order = None
    if inner and isinstance(inner[0], TransposeCodec):
        order, inner = inner[0].order, inner[1:]
    planes = _are(inner, (BytesCodec, BloscCodec, Crc32cCodec))
    if not (planes or _are(inner, (BytesCodec, ZstdCodec, Crc32cCodec))) or not _are(index, (BytesCodec, Crc32cCodec)):
        return None
    return Packing(planes, order) if _little(inner[0]) and _little(index[0]) else None


def _are(codecs: Sequence[object], kinds: Sequence[type]) -> bool:
    return len(codecs) == len(kinds) and all(map(isinstance, codecs, kinds))


def _little(codec: Codec) -> bool:
    return _said(codec, "endian") in (None, "little")


def _said(codec: Codec, key: str) -> object:
    """What the codec's JSON says under `key`: the attributes are enums until zarr 3.2 and strings since."""
    configuration: Any = codec.to_dict().get("configuration", {})
    return configuration.get(key)
