"""How wide text is, for formats whose text stays text: from the advance widths of the font inside matplotlib.

A viewer may draw the text in another font. What it draws is held to these widths by the format.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from matplotlib.ft2font import FT2Font

from attnlens.render.painter.fontfiles import BOLD, REGULAR, bundled
from attnlens.render.text.emoji import clusters
from attnlens.render.text.legible import CUT

__all__ = ["BOLD", "REGULAR", "Fitted", "advance", "fit", "width"]

_STEP = 0.25
_REFERENCE = 100.0


@cache
def face(name: str) -> FT2Font:
    """A font file of matplotlib's own, for measuring only: no one else changes its size."""
    font = FT2Font(bundled(name))
    font.set_size(_REFERENCE, 72)
    return font


@cache
def advance(character: str, name: str = REGULAR) -> float:
    """Width of a character in em; the font lacks some, which are judged by their kind. Of an emoji: its widest part."""
    if len(character) > 1:
        return max(advance(part, name) for part in character)
    code = ord(character)
    if face(name).get_char_index(code):
        return float(face(name).load_char(code).linearHoriAdvance) / 65536 / _REFERENCE
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0.0
    return 1.0 if unicodedata.east_asian_width(character) in "WF" else 0.8


Advance = Callable[[str, str], float]


def width(text: str, size: float, name: str = REGULAR, advance: Advance = advance) -> float:
    """Width of a text at `size`, in the unit of `size`. `advance`: of a character in a font, in em."""
    return sum([advance(character, name) for character in clusters(text)]) * size


@dataclass(frozen=True, slots=True)
class Fitted:
    """A text that fits: what is left of it, its size, and its width in the same unit."""

    text: str
    size: float
    width: float


def fit(
    text: str, room: float, *, size: float, floor: float, name: str = REGULAR, advance: Advance = advance
) -> Fitted:
    """`text` at `size`, condensed down to `floor` and then cut with `…`, no wider than `room`.

    The same rule as that of the pixels, so that cells read alike in every format.
    """
    em = width(text, 1.0, name, advance)
    if em * size <= room:
        return Fitted(text, size, em * size)
    smaller = int(room / em / _STEP) * _STEP
    if smaller >= floor:
        return Fitted(text, smaller, em * smaller)
    left, kept = room / floor - advance(CUT, name), 0
    for character in clusters(text.removesuffix(CUT)):
        left -= advance(character, name)
        if left < 0:
            break
        kept += len(character)
    cut = text[:kept].rstrip() + CUT
    return Fitted(cut, floor, width(cut, floor, name, advance))
