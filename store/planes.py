"""Numbers kept byte by byte: first bytes of all numbers, second bytes of all, each such plane compressed by itself.

Sign and exponent of neighbouring activations are alike, their fractions are noise: apart, zstd finds the one and leaves
the other as it is. The container is that of blosc 1 (github.com/Blosc/c-blosc, README_CHUNK_FORMAT), which every Zarr
has; it is taken apart here and not by blosc, so that a chunk from a stranger is never trusted with a size.
"""

from __future__ import annotations

import struct

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from attnlens.store.frames import check_size

LEVEL = 1
"""Of zstd. Levels 3 to 9 make these planes larger, because they take short matches; 22 makes them 1 % smaller."""
VERSION, ZSTD_VERSION = 2, 1
SHUFFLED, COPIED, BITS, WHOLE, ZSTD = 1, 2, 4, 16, 4
"""Flags: bytes are in planes; nothing is compressed; bits are in planes; planes of a block are one frame. The last
is the number of a compressor, which stands above the flags."""
HEADER = struct.Struct("<BBBBIII")
LEAST_ELEMENTS, MOST_BYTES = 128, 16
"""blosc splits a block into planes only if it has so many numbers, of so few bytes each."""

_zstd = Zstd(level=LEVEL)


def encode_planes(data: NDArray[np.uint8], width: int) -> bytes:
    """The blosc container of the bytes of numbers `width` wide: one block, its planes apart where blosc splits."""
    size = data.size
    planes = np.ascontiguousarray(data.reshape(-1, width).T)
    split = width <= MOST_BYTES and len(planes[0]) >= LEAST_ELEMENTS
    parts = []
    for plane in planes if split else [planes.reshape(-1)]:
        frame = bytes(_zstd.encode(plane))
        frame = frame if len(frame) < plane.size else plane.tobytes()
        parts += [struct.pack("<i", len(frame)), frame]
    flags = ZSTD << 5 | SHUFFLED | (0 if split else WHOLE)
    start = HEADER.size + 4
    header = HEADER.pack(VERSION, ZSTD_VERSION, flags, width, size, size, start + sum(map(len, parts)))
    return b"".join([header, struct.pack("<i", start), *parts])


def decode_planes(data: bytes, most: int) -> NDArray[np.uint8]:
    """The bytes in a blosc container that was compressed by zstd, and has its bytes in planes or as they were.

    Args:
        data: the container.
        most: bytes that it may hold.

    Raises:
        ValueError: it is damaged, holds more, or is compressed in another way.
    """
    if len(data) < HEADER.size:
        raise ValueError("a blosc container is shorter than its header")
    version, _, flags, width, size, block, whole = HEADER.unpack_from(data)
    if version != VERSION or flags & BITS or width < 1:
        raise ValueError("a blosc container is of a kind that is not read")
    if size > most:
        raise ValueError(f"a blosc container holds {size} bytes where a chunk has no more than {most}")
    if whole > len(data):
        raise ValueError("a blosc container is cut short")
    if flags & COPIED:
        if len(data) < HEADER.size + size:
            raise ValueError("a blosc container is cut short")
        return np.frombuffer(data, np.uint8, size, HEADER.size)
    if flags >> 5 != ZSTD:
        raise ValueError("a blosc container is not compressed by zstd")
    if size and not 0 < block <= size:
        raise ValueError("a blosc container has blocks of no size")
    found = np.empty(size, np.uint8)
    count = -(-size // block) if size else 0
    if HEADER.size + 4 * count > len(data):
        raise ValueError("a blosc container is cut short")
    for number, start in enumerate(struct.unpack_from(f"<{count}i", data, HEADER.size)):
        part = found[number * block : (number + 1) * block]
        apart = not flags & WHOLE and width <= MOST_BYTES and part.size == block and block // width >= LEAST_ELEMENTS
        _decode_block(data, start, part, width if flags & SHUFFLED else 1, width if apart else 1)
    return found


def _decode_block(data: bytes, at: int, into: NDArray[np.uint8], width: int, frames: int) -> None:
    """One block, of so many frames of equal size; its numbers are `width` bytes wide, 1 where bytes are in order."""
    size = into.size // frames
    if size * frames != into.size:
        raise ValueError("a blosc block has planes of unequal size")
    planes = into if width == 1 else np.empty_like(into)
    for number in range(frames):
        plane = planes[number * size : (number + 1) * size]
        length = struct.unpack_from("<i", data, at)[0] if HEADER.size < at <= len(data) - 4 else -1
        frame = data[at + 4 : at + 4 + length] if length >= 0 else b""
        if length < 0 or len(frame) != length:
            raise ValueError("a blosc block is cut short")
        at += 4 + length
        if length == size:
            plane[:] = np.frombuffer(frame, np.uint8)
            continue
        check_size(frame, size)
        raw = np.frombuffer(_zstd.decode(frame), np.uint8)
        if raw.size != size:
            raise ValueError(f"a blosc block holds {raw.size} bytes, expected {size}")
        plane[:] = raw
    if width > 1:
        even = into.size - into.size % width
        for number, plane in enumerate(planes[:even].reshape(width, -1)):
            into[number:even:width] = plane
        into[even:] = planes[even:]


__all__ = ["decode_planes", "encode_planes"]
