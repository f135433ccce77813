"""Deflate that does not compress twice what stays the same from picture to picture.

A zlib stream may be cut where its history is forgotten (a full flush): the piece after such a cut can be put behind any
other. So lines that never change are compressed once, and the checksum of the whole is put together from the pieces'.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

isal_zlib: Any
try:
    from isal import isal_zlib
except ImportError:  # it has no wheel for every machine
    isal_zlib = None

Pixels = npt.NDArray[np.uint8]

_LEVEL = 1
_RAW = -15
_HEADER = b"\x78\x01"
_MODULUS = 65521
_KEPT = 1024
_FIRST = 8
"""Bytes that isal gets alone. It hashes the third byte of a longer first piece together with the address of its own
state, so that now and then the same lines became other bytes; a piece this short takes another way through it."""


class Squeezer:
    """For lines that are kept from picture to picture, by isal, or ten times slower by zlib where there is no isal.

    Cuts pay for zlib. isal runs over lines of zeros faster than it makes cuts: there only the checksum is kept.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._by: Any = zlib if isal_zlib is None else isal_zlib
        self._cut = isal_zlib is None

    def squeeze(self, lines: Pixels, still: Sequence[tuple[int, int]]) -> list[bytes]:
        """`lines` (y, bytes) as a zlib stream, in pieces.

        Args:
            lines: what is compressed.
            still: lines start … stop-1 that are the same whenever these two numbers come, in increasing order.
        """
        by, pieces, checksum, at = self._by, [_HEADER], 1, 0
        moving = by.compressobj(_LEVEL, by.DEFLATED, _RAW)
        for start, stop in still:
            part = lines[at:start].data
            checksum = by.adler32(part, checksum)
            piece, own = self._still(lines, start, stop)
            checksum = _joined(checksum, own, (stop - start) * lines.shape[1])
            if self._cut:
                pieces += [moving.compress(part), moving.flush(by.Z_FULL_FLUSH), piece]
            at = stop
        checksum = by.adler32(lines[at:].data, checksum)
        rest = lines[at if self._cut else 0 :].reshape(-1)
        if not self._cut:
            pieces += [moving.compress(rest[:_FIRST].data), moving.flush(by.Z_SYNC_FLUSH)]
            rest = rest[_FIRST:]
        pieces += [moving.compress(rest.data), moving.flush()]
        return [*pieces, checksum.to_bytes(4, "big")]

    def _still(self, lines: Pixels, start: int, stop: int) -> tuple[bytes, int]:
        """Lines that stay as a piece of a stream, and their checksum."""
        if (found := self._kept.get((start, stop))) is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            part, by = lines[start:stop].data, self._by
            alone = by.compressobj(_LEVEL, by.DEFLATED, _RAW)
            piece = alone.compress(part) + alone.flush(by.Z_FULL_FLUSH) if self._cut else b""
            found = self._kept[start, stop] = piece, by.adler32(part)
        return found


def _joined(first: int, second: int, length: int) -> int:
    """Adler-32 of two texts in a row, from the checksum of each and the length of the second."""
    low_first, low_second = first & 0xFFFF, second & 0xFFFF
    low = (low_first + low_second - 1) % _MODULUS
    high = ((first >> 16) + (second >> 16) + length * (low_first - 1)) % _MODULUS
    return high << 16 | low
