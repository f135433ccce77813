"""Colours of cells and of the text on them."""

from __future__ import annotations

import difflib

import matplotlib
import numpy as np
import numpy.typing as npt

from attnlens.schemas.errors import InputError

Pixels = npt.NDArray[np.uint8]

PAPER = (255, 255, 255)
INK = (38, 38, 38)
FAINT = (110, 110, 110)
ACCENT = (168, 76, 0)
GRID = (38, 38, 38)
HATCH = ((232, 232, 232), (206, 206, 206))
"""The two greys of a cell without attention. No colormap value is drawn hatched."""

_LEVELS = 256


class Colours:
    """A named colormap of matplotlib as a table, and which of its colours need light text.

    Raises:
        InputError: matplotlib knows no such colormap.
    """

    def __init__(self, name: str) -> None:
        if name not in matplotlib.colormaps:
            close = difflib.get_close_matches(name, list(matplotlib.colormaps), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(close)}?" if close else "for example coolwarm, viridis, magma, cividis"
            raise InputError(f"--cmap {name!r} is no colormap of matplotlib: {hint}")
        self._map = matplotlib.colormaps[name]

    def fill(self, matrix: npt.NDArray[np.float32], scale: tuple[float, float]) -> Pixels:
        """Colours (row, column, rgb) of values (row, column), as matplotlib maps them; NaN is grey."""
        low, high = scale
        rgb = self._map((matrix - low) / (high - low), bytes=True)[..., :3]
        return np.where(np.isnan(matrix)[..., None], np.array(HATCH[0], np.uint8), rgb).astype(np.uint8)

    def ramp(self) -> Pixels:
        """The colour bar's colours (level, rgb), lowest first."""
        return np.asarray(self._map(np.linspace(0, 1, _LEVELS), bytes=True))[:, :3].astype(np.uint8)


def is_dark(fill: Pixels) -> npt.NDArray[np.bool_]:
    """Where `PAPER` is the colour of text on rgb (…, 3): wherever it has at least 3:1 contrast, as WCAG counts it.

    Taking whichever of paper and ink has more contrast would put ink on middle blues, where it reads worse than the
    number says.
    """
    return np.asarray(1.05 / (_luminance(fill) + 0.05) >= 3)


def _luminance(colours: Pixels) -> npt.NDArray[np.float64]:
    """Relative luminance of rgb (…, 3)."""
    channel = colours.astype(np.float64) / 255
    linear = np.where(channel <= 0.03928, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))
