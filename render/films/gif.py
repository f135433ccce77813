"""GIF: shown everywhere, 256 colours a frame."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnlens.render.films import Pixels, Reel

NAME = "gif"
SUFFIX = ".gif"

_MARK = b"attnlens "
_FOR_EVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"


def check() -> None:
    """Nothing is missing: Pillow comes with matplotlib."""


def encode(frames: Iterable[Pixels], reel: Reel) -> bytes:
    """A GIF that runs for ever, each frame with a palette of its own."""
    parts = [
        b"GIF89a",
        struct.pack("<2H3B", reel.width, reel.height, 0, 0, 0),
        _FOR_EVER,
        b"\x21\xfe",
        _blocks(_MARK + reel.recipe.encode("ascii")),
    ]
    delay = max(2, round(100 / reel.fps))
    for pixels in frames:
        parts.append(struct.pack("<4BH2B", 0x21, 0xF9, 4, 4, delay, 0, 0))
        parts.append(_image(pixels))
    return b"".join([*parts, b"\x3b"])


def recipe(data: bytes) -> str | None:
    """The recipe in a GIF."""
    start = data.find(b"\x21\xfe", 13, 4096)
    if data[:6] != b"GIF89a" or start < 0:
        return None
    at, parts = start + 2, []
    while at < len(data) and data[at]:
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    text = b"".join(parts)
    return text.removeprefix(_MARK).decode("ascii", "replace") if text.startswith(_MARK) else None


def _image(pixels: Pixels) -> bytes:
    """One frame: its place, its palette and its compressed pixels, taken out of a GIF of this frame alone."""
    from PIL import Image

    file = io.BytesIO()
    small = Image.fromarray(pixels).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(file, "GIF", optimize=False, interlace=False)
    data = file.getvalue()
    bits = data[10] & 7
    palette = data[13 : 13 + (6 << bits)]
    at = 13 + len(palette)
    while data[at] == 0x21:  # extensions of that file
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    place = data[at : at + 9] + bytes([0x80 | bits])
    return place + palette + data[at + 10 : -1]


def _blocks(data: bytes) -> bytes:
    """Data in blocks of at most 255 bytes, as GIF wants them."""
    parts = [data[start : start + 255] for start in range(0, len(data), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
