"""Lines of pixels to PNG. Written out by hand because it is short, fast, and the same bytes everywhere."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

UP = 2
"""The filter that says: each line is stored minus the one above."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def blank_lines(height: int, width: int) -> Pixels:
    """Lines of `width` bytes without any difference, with room for the filter before each."""
    lines = np.zeros((height, 1 + width), np.uint8)
    lines[:, 0] = UP
    return lines


def encode(
    lines: Pixels, squeezed: Sequence[bytes], *, palette: Pixels | None, dpi: int, text: Mapping[str, str]
) -> bytes:
    """A PNG of lines (y, 1 + x·depth) as `blank_lines` makes them, with its resolution and Latin-1 text entries.

    `squeezed` is what `Squeezer` makes of the lines. A pixel has three bytes, or one that points into `palette`
    (index, rgb).
    """
    height, width = len(lines), lines.shape[1] - 1
    kind = 2 if palette is None else 3
    per_metre = round(dpi / 0.0254)
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">2I5B", width // (3 if palette is None else 1), height, 8, kind, 0, 0, 0)),
            *([] if palette is None else [_chunk(b"PLTE", palette.tobytes())]),
            _chunk(b"pHYs", struct.pack(">2IB", per_metre, per_metre, 1)),
            *(_chunk(b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in text.items()),
            _chunk(b"IDAT", b"".join(squeezed)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
