"""Text that fits, as pixels: measuring, condensing, cutting, and spelling out what the font cannot draw.

Only the fonts inside matplotlib are used, by file, so that pictures do not depend on what a machine has installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties, get_font

from attnlens.render.text import CUT

REGULAR = "DejaVuSans.ttf"
BOLD = "DejaVuSans-Bold.ttf"

SETTINGS: Any = {
    key: matplotlib.rcParamsDefault[key]
    for key in ("text.hinting", "text.hinting_factor", "text.kerning_factor", "text.antialiased")
    if key in matplotlib.rcParamsDefault
}
"""Settings of matplotlib that change glyphs; drawing happens under these, whatever a user's matplotlibrc says."""

_STEP = 0.25
_Renderer: Any = RendererAgg  # matplotlib ships no types for it


def _file(name: str) -> str:
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", name))


@cache
def _font(name: str, size: float) -> FontProperties:
    return FontProperties(fname=_file(name), size=size)


@cache
def drawable(name: str = REGULAR) -> frozenset[int]:
    """Code points that a bundled font has a glyph for."""
    return frozenset(get_font(_file(name)).get_charmap())


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


class Typesetter:
    """Turns texts into ink at one resolution, each once.

    Everything must happen inside `matplotlib.rc_context(SETTINGS)`. `missing` collects the characters that the font
    lacks and that were spelled out.
    """

    def __init__(self, dpi: int) -> None:
        self._dpi = dpi
        self._ruler = _Renderer(1, 1, dpi)
        self._inks: dict[tuple[str, str, int, int, float, float], Ink] = {}
        self.missing: set[str] = set()

    def fit(self, text: str, width: int, height: int, *, size: float, floor: float, name: str = REGULAR) -> Ink:
        """`text` at `size` points, condensed down to `floor` points and then cut with `…`, inside width × height."""
        key = (text, name, width, height, size, floor)
        if (ink := self._inks.get(key)) is None:
            ink = self._inks[key] = self._fit(self._spell(text, name), width, height, size, floor, name)
        return ink

    def width(self, text: str, size: float) -> float:
        """Pixels that `text` is wide, uncut."""
        return self._measure(self._spell(text, REGULAR), size, REGULAR)[0]

    def _spell(self, text: str, name: str) -> str:
        """`text` with characters that the font lacks as code points: `U+4E2D`, and `U+4E2D 56FD` for two in a row."""
        parts: list[str] = []
        spelled = False
        for character in text:
            there = ord(character) in drawable(name)
            if there:
                parts.append(character)
            else:
                self.missing.add(character)
                parts.append(f" {ord(character):04X}" if spelled else f"U+{ord(character):04X}")
            spelled = not there
        return "".join(parts)

    def _fit(self, text: str, width: int, height: int, size: float, floor: float, name: str) -> Ink:
        wide, high = self._measure(text, size, name)
        if high > height:
            text = "".join(c if c.isascii() else f"U+{ord(c):04X}" for c in text)
            wide, _ = self._measure(text, size, name)
        # Hinting makes widths step, so the proportional guess may still be a little too wide.
        trial = size if wide <= width else int(size * width / wide / _STEP) * _STEP
        while trial >= floor:
            if self._measure(text, trial, name)[0] <= width:
                return self._ink(text, trial, name, width, height)
            trial -= _STEP
        return self._ink(self._cut(text, width, floor, name), floor, name, width, height)

    def _cut(self, text: str, width: int, size: float, name: str) -> str:
        """The longest beginning of `text` that fits with `…` behind it."""
        text = text.removesuffix(CUT)
        kept, too_many = 0, len(text) + 1
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            if self._measure(text[:middle] + CUT, size, name)[0] <= width:
                kept = middle
            else:
                too_many = middle
        return text[:kept].rstrip() + CUT

    def _measure(self, text: str, size: float, name: str) -> tuple[float, float]:
        width, height, _ = self._ruler.get_text_width_height_descent(text, _font(name, size), ismath=False)
        return width, height

    def _ink(self, text: str, size: float, name: str, width: int, height: int) -> Ink:
        font = _font(name, size)
        wide, high, descent = self._ruler.get_text_width_height_descent(text, font, ismath=False)
        margin = 4 + round(size * self._dpi / 72)
        baseline = margin + round(high - descent)
        page = _Renderer(round(wide) + 2 * margin, round(high) + 2 * margin, self._dpi)
        page.draw_text(page.new_gc(), margin, baseline, text, font, 0, ismath=False)
        coverage = np.asarray(page.buffer_rgba())[..., 3]
        rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
        if not rows.size:
            return Ink(text, size, np.zeros((0, 0), np.uint8), 0)
        # Ink may pass the measured box by a pixel where a glyph leans over: the box holds all the same.
        first = rows[0]
        mask = coverage[first : rows[-1] + 1, columns[0] : columns[-1] + 1][:height, :width].copy()
        return Ink(text, size, mask, int(baseline - first))
