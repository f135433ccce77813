"""APNG: exact colours, frame by frame as PNG compresses them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from attnlens.render.formats.png import SIGNATURE, chunk, recipe_chunk
from attnlens.render.formats.png import recipe as recipe_of_png

if TYPE_CHECKING:
    from attnlens.render.films import Pixels, Reel

NAME = "apng"
SUFFIX = ".apng"


def check() -> None:
    """Nothing is missing."""


def encode(frames: Iterable[Pixels], reel: Reel) -> bytes:
    """An APNG that runs for ever. A frame after the first is stored where it differs from the one before."""
    parts = [
        SIGNATURE,
        chunk(b"IHDR", struct.pack(">2I5B", reel.width, reel.height, 8, 2, 0, 0, 0)),
        recipe_chunk(reel.recipe),
        chunk(b"acTL", struct.pack(">2I", reel.count, 0)),
    ]
    serial, before = 0, None
    for pixels in frames:
        top, left, part = (0, 0, pixels) if before is None else _changed(before, pixels)
        place = struct.pack(">5I2H2B", serial, part.shape[1], part.shape[0], left, top, *_delay(reel.fps), 0, 0)
        parts.append(chunk(b"fcTL", place))
        serial += 1
        if before is None:
            parts.append(chunk(b"IDAT", _deflated(part)))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", serial) + _deflated(part)))
            serial += 1
        before = pixels
    return b"".join([*parts, chunk(b"IEND", b"")])


def recipe(data: bytes) -> str | None:
    """The recipe in an APNG."""
    return recipe_of_png(data) if b"acTL" in data[:4096] else None


def _changed(before: Pixels, now: Pixels) -> tuple[int, int, Pixels]:
    """The smallest rectangle that holds every pixel that changed: top, left and pixels."""
    other = (before != now).any(axis=-1)
    rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
    if not rows.size:
        return 0, 0, now[:1, :1]
    top, left = int(rows[0]), int(columns[0])
    return top, left, now[top : rows[-1] + 1, left : columns[-1] + 1]


def _delay(fps: float) -> tuple[int, int]:
    return round(1000 / fps), 1000


def _deflated(pixels: Pixels) -> bytes:
    height, width, _ = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(height, 3 * width)
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = 2  # the filter Up
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    return zlib.compress(lines.data, 6)
