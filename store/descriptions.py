"""What the zarr.json of an array says, read without zarr, and the limits that a hostile store runs into."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlens.schemas.validate import ArrayDescription
from attnlens.schemas.version import NAMESPACE
from attnlens.store.bfloat16 import WHOLE_EXPONENT, has_bits
from attnlens.store.quantize import ENCODING, SQRT

CODECS = frozenset(
    {"bytes", "zstd", "crc32c", "vlen-utf8", "sharding_indexed", "transpose"},
)
PLANES = "blosc (zstd, shuffle)"
"""Codecs that may run. zarr would import any that is installed, and some run what they read."""

ITEM_BYTES = {"bool": 1, "uint8": 1, "uint16": 2, "int32": 4, "float16": 2, "float32": 4, "string": 8}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest things a reader will touch. A store beyond them was not made by a capture, or is
    read by `lens --no-limits`.

    axis: entries of an axis, of bytes `byte_axis`. chunk_bytes: a chunk in memory. shard_chunks, chunks: in a file, in
    an array. arrays: in a capture. A read of more than `read_bytes` is refused if the array's files have less than one
    byte for `read_ratio` of them.
    """

    axis: int = 1 << 22
    byte_axis: int = 1 << 28
    chunk_bytes: int = 1 << 28
    shard_chunks: int = 1 << 20
    chunks: int = 1 << 32
    arrays: int = 1 << 10
    read_bytes: int = 1 << 27
    read_ratio: int = 1 << 14


WIDE = Limits(axis=1 << 40, byte_axis=1 << 40, chunk_bytes=1 << 33, shard_chunks=1 << 26, chunks=1 << 50,
              arrays=1 << 20, read_bytes=1 << 60)  # fmt: skip
"""For a store that is large and known."""
NO_LIMITS = "ATTNLENS_NO_LIMITS"
"""Environment variable that `lens --no-limits` sets, so that processes which draw have it too."""


def default_limits() -> Limits:
    """The limits, or none to speak of if they were lifted."""
    return WIDE if os.environ.get(NO_LIMITS) else Limits()


def raw_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of an array in memory; strings count as 8 bytes each."""
    return ITEM_BYTES.get(dtype, 8) * math.prod(shape)


def describe_array(document: Mapping[str, Any], limits: Limits) -> ArrayDescription:
    """The description in an array's zarr.json.

    Raises:
        ValueError: it is not the metadata of a Zarr v3 array that this reader can read, or beyond the limits.
    """
    if document.get("zarr_format") != 3 or document.get("node_type") != "array":
        raise ValueError("its zarr.json does not describe a Zarr 3 array")
    if not isinstance(document.get("attributes", {}), Mapping):
        raise ValueError("its attributes are no JSON object")
    shape = _sizes(document.get("shape"), "shape", least=0)
    dtype = document.get("data_type")
    if not isinstance(dtype, str):
        raise ValueError(f"data_type is {dtype!r}")
    grid = document.get("chunk_grid")
    if not isinstance(grid, Mapping) or grid.get("name") != "regular":
        raise ValueError("its chunk grid is not regular")
    outer = _sizes(_configuration(grid).get("chunk_shape"), "chunk_shape", least=1)
    chunk, shard = outer, None
    for codec in _codecs(document.get("codecs")):
        if codec["name"] == "sharding_indexed":
            chunk, shard = _sizes(_configuration(codec).get("chunk_shape"), "chunk_shape", least=1), outer
    names = document.get("dimension_names")
    axes = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else (None,) * len(shape)
    dtype = read_dtype(dtype, ours(document.get("attributes")))
    description = ArrayDescription(shape=shape, dtype=dtype, axes=axes, chunk=chunk, shard=shard)
    check_limits(description, limits)
    return description


def ours(attributes: object) -> Mapping[str, Any]:
    """What is said under our key of the attributes of an array; nothing, if that is no JSON object."""
    found = attributes.get(NAMESPACE) if isinstance(attributes, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def read_dtype(dtype: str, attributes: Mapping[str, Any]) -> str:
    """What a reader makes of cells of `dtype`, by the encoding in our attributes of the array: weights of bytes.

    Raises:
        ValueError: the encoding is unknown, or not of this dtype. Cells would be read as numbers that they are not.
    """
    encoding = attributes.get(ENCODING)
    if encoding is None or (encoding == WHOLE_EXPONENT and has_bits(dtype, attributes)):
        return dtype
    if encoding == SQRT and dtype == "uint8":
        return "float16"
    known = f"{SQRT} of uint8, {WHOLE_EXPONENT} of the bits of bfloat16"
    raise ValueError(f"encoding {str(encoding)[:40]!r} of {dtype} is unknown; known: {known}")


def _codecs(codecs: object) -> list[Mapping[str, Any]]:
    """The codecs, those inside shards included."""
    if not isinstance(codecs, Sequence) or isinstance(codecs, str):
        raise ValueError(f"codecs is {codecs!r}")
    found: list[Mapping[str, Any]] = []
    for codec in codecs:
        if not isinstance(codec, Mapping) or not isinstance(codec.get("name"), str):
            raise ValueError(f"codec {codec!r} has no name")
        if codec["name"] not in CODECS and not _is_planes(codec):
            raise ValueError(f"codec {codec['name']!r} is unknown; known: {', '.join([*sorted(CODECS), PLANES])}")
        found.append(codec)
        if codec["name"] == "sharding_indexed":
            inner = [*_codecs(_configuration(codec).get("codecs")), *_codecs(_configuration(codec).get("index_codecs"))]
            if any(item["name"] == "sharding_indexed" for item in inner):
                raise ValueError("shards inside shards are not read")
    return found


def _is_planes(codec: Mapping[str, Any]) -> bool:
    """Whether a codec is the one kind of blosc that the format has."""
    about = _configuration(codec)
    return codec["name"] == "blosc" and (about.get("cname"), about.get("shuffle")) == ("zstd", "shuffle")


def _configuration(part: Mapping[str, Any]) -> Mapping[str, Any]:
    configuration = part.get("configuration", {})
    if not isinstance(configuration, Mapping):
        raise ValueError(f"configuration is {configuration!r}")
    return configuration


def _sizes(value: object, name: str, *, least: int) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} is {value!r}")
    for size in value:
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ValueError(f"{name} is {list(value)!r}")
    return tuple(value)


def check_limits(found: ArrayDescription, limits: Limits) -> None:
    """Return if an array is within the limits.

    Raises:
        ValueError: it is not; the message says in what.
    """
    most = limits.byte_axis if found.axes == ("byte",) else limits.axis
    if max(found.shape, default=0) > most:
        raise ValueError(f"shape {found.shape} has an axis longer than {most}")
    size = math.prod(found.chunk) * ITEM_BYTES.get(found.dtype, 8)
    if size > limits.chunk_bytes:
        raise ValueError(f"one chunk {found.chunk} of {found.dtype} is {size} bytes, more than {limits.chunk_bytes}")
    if len(found.chunk) != len(found.shape) or (found.shard is not None and len(found.shard) != len(found.chunk)):
        raise ValueError(f"shape {found.shape} and chunk {found.chunk} have different numbers of dimensions")
    if found.shard is not None:
        inside = math.prod(math.ceil(s / c) for s, c in zip(found.shard, found.chunk, strict=True))
        if inside > limits.shard_chunks:
            raise ValueError(f"one shard holds {inside} chunks, more than {limits.shard_chunks}")
    if math.prod(math.ceil(s / c) for s, c in zip(found.shape, found.chunk, strict=True)) > limits.chunks:
        raise ValueError(f"shape {found.shape} in chunks {found.chunk} is more than {limits.chunks} chunks")
