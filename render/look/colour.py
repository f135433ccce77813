"""Colours of cells and of the text on them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt

from attnlens.schemas.errors import InputError

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours around the cells, and `hatch`, the two greys of a cell without a value: no colormap is striped."""

    paper: Colour
    ink: Colour
    faint: Colour
    accent: Colour
    hatch: tuple[Colour, Colour]


THEMES: Mapping[str, Theme] = {
    "light": Theme(
        paper=(255, 255, 255),
        ink=(38, 38, 38),
        faint=(110, 110, 110),
        accent=(168, 76, 0),
        hatch=((232, 232, 232), (206, 206, 206)),
    ),
    "dark": Theme(
        paper=(24, 26, 30),
        ink=(228, 228, 228),
        faint=(160, 160, 165),
        accent=(255, 170, 90),
        hatch=((58, 60, 64), (78, 80, 84)),
    ),
}
"""All texts of a theme have at least 4.5:1 contrast with its paper, as WCAG counts it."""

PAPER, INK, FAINT, ACCENT, HATCH = (
    THEMES["light"].paper,
    THEMES["light"].ink,
    THEMES["light"].faint,
    THEMES["light"].accent,
    THEMES["light"].hatch,
)
GRID = (38, 38, 38)
"""Lines between cells, in both themes."""

ON_LIGHT, ON_DARK = INK, PAPER
"""Text on cells, in both themes: the fills are the colormap's in both."""

_LEVELS = 256


class Colours:
    """A named colormap of matplotlib as a table, and which of its colours need light text.

    `table` uint8 (level, rgb) holds every colour that the map can give, each once.

    Raises:
        InputError: matplotlib knows no such colormap.
    """

    def __init__(self, name: str) -> None:
        if name not in matplotlib.colormaps:
            close = difflib.get_close_matches(name, list(matplotlib.colormaps), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(close)}?" if close else "for example coolwarm, viridis, magma, cividis"
            raise InputError(f"--cmap {name!r} is no colormap of matplotlib: {hint}")
        self._map = matplotlib.colormaps[name]
        outside = self._map(np.array([-1.0, 2.0]), bytes=True)
        inside = self._map(np.arange(self._map.N), bytes=True)
        every = np.concatenate([inside, outside])[:, :3].astype(np.uint8)
        packed = _packed(every)
        first = np.sort(np.unique(packed, return_index=True)[1])
        self.table: Pixels = every[first]
        self._order = np.argsort(packed[first])
        self._sorted = packed[first][self._order]

    def fill(self, matrix: npt.NDArray[np.float32], scale: tuple[float, float], theme: str = "light") -> Pixels:
        """Colours (row, column, rgb) of values (row, column), as matplotlib maps them; NaN is grey."""
        grey = np.array(THEMES[theme].hatch[0], np.uint8)
        return np.where(np.isnan(matrix)[..., None], grey, self._mapped(matrix, scale))

    def levels(self, matrix: npt.NDArray[np.float32], scale: tuple[float, float]) -> npt.NDArray[np.intp]:
        """Rows of `table` for values (row, column), as matplotlib maps them; -1 for NaN."""
        packed = _packed(self._mapped(matrix, scale))
        return np.where(np.isnan(matrix), -1, self._order[np.searchsorted(self._sorted, packed)])

    def ramp(self, scale: tuple[float, float] = (0.0, 1.0)) -> Pixels:
        """The colour bar's colours (level, rgb), lowest first."""
        low, high = scale
        values = np.linspace(low, high, _LEVELS, dtype=np.float64)
        return self._mapped(values, scale)

    def _mapped(self, matrix: npt.NDArray[np.floating], scale: tuple[float, float]) -> Pixels:
        low, high = scale
        return np.asarray(self._map((matrix - low) / (high - low), bytes=True))[..., :3].astype(np.uint8)


def is_dark(fill: Pixels) -> npt.NDArray[np.bool_]:
    """Where `ON_DARK` is the colour of text on rgb (…, 3): wherever it has at least 3:1 contrast, as WCAG counts it.

    Taking whichever of the two has more contrast would put dark text on middle blues, where it reads worse than the
    number says.
    """
    return np.asarray(1.05 / (_luminance(fill) + 0.05) >= 3)


def _packed(colours: Pixels) -> npt.NDArray[np.int32]:
    """One number for each rgb (…, 3)."""
    wide = colours.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _luminance(colours: Pixels) -> npt.NDArray[np.float64]:
    """Relative luminance of rgb (…, 3)."""
    channel = colours.astype(np.float64) / 255
    linear = np.where(channel <= 0.03928, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))
