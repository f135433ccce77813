"""A canvas of pixels on which rectangles and ink are put."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from attnlens.render.fonts import Ink

Colour = tuple[int, int, int]
Anchor = Literal["start", "middle", "end"]


class Canvas:
    """`pixels` uint8 (y, x, rgb), y downwards."""

    def __init__(self, width: int, height: int, paper: Colour) -> None:
        line = np.tile(np.array(paper, np.uint8), width)
        self.pixels: npt.NDArray[np.uint8] = np.tile(line, (height, 1)).reshape(height, width, 3)

    def box(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """A filled rectangle."""
        self.pixels[y : y + height, x : x + width] = colour

    def ink(self, ink: Ink, x: float, baseline: int, colour: Colour, anchor: Anchor = "start") -> None:
        """A line of text: `x` is its left end, middle or right end. What falls off the canvas is left out."""
        rows, columns = ink.mask.shape
        left = round(x - {"start": 0.0, "middle": columns / 2, "end": float(columns)}[anchor])
        top = baseline - ink.rise
        target = self.pixels[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
        skip_y, skip_x = max(-top, 0), max(-left, 0)
        cover = ink.mask[skip_y : skip_y + target.shape[0], skip_x : skip_x + target.shape[1], None].astype(np.int32)
        below = target.astype(np.int32)
        target[:] = below + ((np.array(colour, np.int32) - below) * cover + 127) // 255
