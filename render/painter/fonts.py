"""Text that fits, as pixels: measuring, condensing, cutting, finding a font, and spelling out what no font can draw."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import ft2font

from attnlens.render.painter.fontfiles import BOLD, REGULAR, bundled, extras
from attnlens.render.text.emoji import JOINERS, clusters
from attnlens.render.text.legible import CUT

__all__ = ["BOLD", "REGULAR", "Ink", "Typesetter", "drawable"]

_STEP = 0.25
_HINTING: Any = getattr(ft2font, "LoadFlags", None)
_HINTING = _HINTING.DEFAULT if _HINTING else 0  # whatever a user's matplotlibrc says
_KEPT = 4096
_LARGE = 40.0


@cache
def _face(file: str, index: int = 0) -> Any:
    return ft2font.FT2Font(file, face_index=index) if index else ft2font.FT2Font(file)


@cache
def _chain(name: str, behind: tuple[int, ...]) -> Any:
    """A bundled font that asks these extra fonts for what it lacks."""
    return ft2font.FT2Font(bundled(name), _fallback_list=[_face(*extras()[number]) for number in behind])


@cache
def _has(name: str, code: int) -> int | None:
    """Who has a glyph for a code point: -1 the bundled font, else the number of an extra font, None nobody."""
    if _face(bundled(name)).get_char_index(code):
        return -1
    for number, extra in enumerate(extras()):
        if _face(*extra).get_char_index(code):
            return number
    return None


@cache
def _one(sequence: str, name: str) -> bool:
    """Whether an emoji of several characters comes out as one sign: no wider than the widest of its characters."""
    holders = {_has(name, ord(character)) for character in sequence}
    if None in holders:
        return False
    font, wide = _chain(name, tuple(sorted(number for number in holders if number is not None and number >= 0))), []
    for text in (sequence, *sequence):
        font.clear()
        font.set_size(_LARGE, 72)
        font.set_text(text, 0.0, flags=_HINTING)
        wide.append(font.get_width_height()[0])
    return bool(0 < wide[0] <= 1.2 * max(wide[1:]))


def drawable(character: str, name: str = REGULAR) -> bool:
    """Whether there is a glyph for a character."""
    return _has(name, ord(character)) is not None


@dataclass(frozen=True, eq=False)
class Ink:
    """A line of text as coverage uint8 (y, x), cut to its ink; `rise` of its rows lie above the baseline."""

    text: str
    size: float
    mask: npt.NDArray[np.uint8]
    rise: int

    @property
    def width(self) -> int:
        """Pixels from the first inked column to the last."""
        return int(self.mask.shape[1])


def _drawn_apart(text: str, name: str) -> list[str]:
    """Characters, and emoji of several that are drawn as one."""
    found: list[str] = []
    for part in clusters(text):
        found += [part] if len(part) == 1 or _one(part, name) else part
    return found


class Typesetter:
    """Turns texts into ink at one resolution. Settings of matplotlib have no influence.

    `missing` collects the characters that no font here has and that were spelled out.
    """

    def __init__(self, dpi: int) -> None:
        self._dpi = dpi
        self._inks: dict[tuple[str, str, int, int, float, float], Ink] = {}
        self._widths: dict[tuple[str, float], float] = {}
        self.missing: set[str] = set()

    def fit(self, text: str, width: int, height: int, *, size: float, floor: float, name: str = REGULAR) -> Ink:
        """`text` at `size` points, condensed down to `floor` points and then cut with `…`, inside width × height."""
        key = (text, name, width, height, size, floor)
        if (ink := self._inks.get(key)) is None:
            if len(self._inks) >= _KEPT:
                self._inks.clear()
            ink = self._inks[key] = self._fit(self._spell(text, name), width, height, size, floor, name)
        return ink

    def width(self, text: str, size: float) -> float:
        """Pixels that `text` is wide, uncut."""
        if (found := self._widths.get((text, size))) is None:
            if len(self._widths) >= _KEPT:
                self._widths.clear()
            found = self._widths[text, size] = self._set(self._spell(text, REGULAR), size, REGULAR)[1]
        return found

    def _spell(self, text: str, name: str) -> str:
        """`text` with characters that no font has as code points: `U+4E2D`, and `U+4E2D 56FD` for two in a row.

        So is a mark that the font of what it sits on does not have: both are shaped together, in one font; and an
        emoji of several characters that no font draws as one.
        """
        parts: list[str] = []
        spelled, below = False, None
        for character in _drawn_apart(text, name):
            if len(character) > 1:
                parts.append(character)
                spelled, below = False, None
                continue
            holder = _has(name, ord(character))
            there = holder is not None and not (
                (holder != below and parts and unicodedata.category(character) in ("Mn", "Mc", "Me"))
                or character in JOINERS
            )
            below = holder if there else None
            if there:
                parts.append(character)
            else:
                if character not in JOINERS:
                    self.missing.add(character)
                parts.append(f" {ord(character):04X}" if spelled else f"U+{ord(character):04X}")
            spelled = not there
        return "".join(parts)

    def _fit(self, text: str, width: int, height: int, size: float, floor: float, name: str) -> Ink:
        font, wide, high, rise = self._set(text, size, name)
        if high > height:
            text = "".join(c if c.isascii() else f"U+{ord(c):04X}" for c in text)
            font, wide, high, rise = self._set(text, size, name)
        if wide <= width:
            return self._ink(font, text, size, rise, width, height)
        # Hinting makes widths step, so the proportional guess may still be a little too wide.
        trial = int(size * width / wide / _STEP) * _STEP
        while trial >= floor:
            font, wide, high, rise = self._set(text, trial, name)
            if wide <= width:
                return self._ink(font, text, trial, rise, width, height)
            trial -= _STEP
        text = self._cut(text, width, floor, name)
        font, _, _, rise = self._set(text, floor, name)
        return self._ink(font, text, floor, rise, width, height)

    def _cut(self, text: str, width: int, size: float, name: str) -> str:
        """The longest beginning of `text` that fits with `…` behind it."""
        parts = clusters(text.removesuffix(CUT))
        kept, too_many = 0, len(parts) + 1
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            if self._set("".join(parts[:middle]) + CUT, size, name)[1] <= width:
                kept = middle
            else:
                too_many = middle
        return "".join(parts[:kept]).rstrip() + CUT

    def _set(self, text: str, size: float, name: str) -> tuple[Any, float, float, int]:
        """A font with `text` laid out in it, its width and height, and how much of it lies above the baseline."""
        holders = {_has(name, ord(character)) for character in text}
        behind = tuple(sorted(number for number in holders if number is not None and number >= 0))
        font = _chain(name, behind)
        font.clear()
        font.set_size(size, self._dpi)  # of the fonts behind it too
        font.set_text(text, 0.0, flags=_HINTING)
        width, height = font.get_width_height()
        return font, width / 64, height / 64, (height - font.get_descent()) // 64

    def _ink(self, font: Any, text: str, size: float, rise: int, width: int, height: int) -> Ink:
        font.draw_glyphs_to_bitmap(antialiased=True)
        coverage = np.asarray(font.get_image())
        rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
        if not rows.size:
            return Ink(text, size, np.zeros((0, 0), np.uint8), 0)
        # Ink may pass the measured box by a pixel where a glyph leans over: the box holds all the same.
        first = int(rows[0])
        mask = coverage[first : rows[-1] + 1, columns[0] : columns[-1] + 1][:height, :width].copy()
        return Ink(text, size, mask, rise + 1 - first)
