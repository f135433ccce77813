"""Pixels to PNG. Written out by hand because it is short, fast, and the same bytes everywhere."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_LEVEL = 1


def encode(pixels: npt.NDArray[np.uint8], *, dpi: int, text: Mapping[str, str]) -> bytes:
    """An RGB PNG of pixels uint8 (y, x, rgb) with its resolution and Latin-1 text entries."""
    height, width, _ = pixels.shape
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = _UP
    flat = pixels.reshape(height, 3 * width)
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    per_metre = round(dpi / 0.0254)
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
            _chunk(b"pHYs", struct.pack(">2IB", per_metre, per_metre, 1)),
            *(_chunk(b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in text.items()),
            _chunk(b"IDAT", zlib.compress(lines.data, _LEVEL)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
