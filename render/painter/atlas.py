"""Texts of cells as bytes of pixels, each made once: strings → places of their ink → ink on its ground.

Memory is bounded whatever a run draws: what is full is emptied and filled again. That costs time, never other bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attnlens.render.look.colour import Pixels
from attnlens.render.painter.pigment import Numbers, Pigment

BUDGET = 12 << 20
"""Bytes that the inked cells of one size class may take."""

_TEXTS = 8192
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Placed:
    """Coverage uint8 (y, x) of a text, and its first line and pixel in the cell."""

    mask: Pixels
    y: int
    x: int


Place = Callable[[str], Placed]


class Texts:
    """Strings by number: where their ink lies in a cell. Number 0 is no text.

    `inside[n]`: whether the ink of text n lies within the lines `band`, which hold ordinary text.
    """

    def __init__(self, place: Place, band: range) -> None:
        self._place, self.band = place, band
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.placed = [Placed(np.zeros((0, 0), np.uint8), 0, 0)]
        self.inside = np.ones(_TEXTS, np.bool_)
        self._numbers = {"": 0}

    def room(self, count: int) -> bool:
        """Whether so many more texts fit."""
        return len(self.placed) + count <= _TEXTS

    def numbers(self, texts: Sequence[str]) -> Numbers:
        """Numbers of strings, new ones placed."""
        known = self._numbers
        try:
            return np.array([known[text] for text in texts], np.intp)
        except KeyError:
            return np.array([known[text] if text in known else self._add(text) for text in texts], np.intp)

    def _add(self, text: str) -> int:
        number = self._numbers[text] = len(self.placed)
        placed = self._place(text)
        self.placed.append(placed)
        if number >= len(self.inside):
            self.inside = np.concatenate([self.inside, np.ones_like(self.inside)])
        self.inside[number] = self.band.start <= placed.y and placed.y + len(placed.mask) <= self.band.stop
        return number


class Atlas:
    """Inked cells of one size class: for a text on a ground, the lines of `band` minus the line above each.

    `cells` bytes (number, line, x·depth) is what pictures are put together from; `numbers` says which are needed.
    """

    def __init__(self, pigment: Pigment, lines: Pixels, band: range) -> None:
        self._pigment, self._lines, self.band = pigment, lines, band
        self._width = lines.shape[1] // pigment.depth
        self.capacity = max(256, BUDGET // ((len(band) + 1) * lines.shape[1]))
        self.cells = np.empty((0, len(band) + 1, lines.shape[1]), np.uint8)
        self.clear()

    def clear(self) -> None:
        """Forget everything; memory is kept for what comes."""
        self._known: npt.NDArray[np.int32] = np.full((256, len(self._lines)), -1, np.int32)
        self._count = 0

    def room(self, count: int) -> bool:
        """Whether so many more inked cells fit."""
        return bool(self._count + count <= self.capacity)

    def numbers(self, texts: Texts, slots: Numbers, grounds: Numbers) -> Numbers:
        """Numbers of cells for texts (n) on grounds (n), new ones inked."""
        if len(texts.placed) > len(self._known):
            more = np.full((max(len(texts.placed), 2 * len(self._known)), self._known.shape[1]), -1, np.int32)
            more[: len(self._known)] = self._known
            self._known = more
        shades = self._pigment.shades(grounds)
        found = self._known[slots, shades]
        if (new := found < 0).any():
            pairs = np.unique(np.stack([slots[new], shades[new]]), axis=1)
            for start in range(0, pairs.shape[1], _BATCH):
                self._ink(texts, pairs[0, start : start + _BATCH], pairs[1, start : start + _BATCH])
            found = self._known[slots, shades]
        return found.astype(np.intp)

    def _ink(self, texts: Texts, slots: Numbers, grounds: Numbers) -> None:
        stop = self._count + len(slots)
        if stop > len(self.cells):
            size = max(stop, min(self.capacity, 2 * len(self.cells)), 256)
            # The pages of an array that grows in steps are touched only when they are written.
            grown = np.empty((size, *self.cells.shape[1:]), np.uint8)
            grown[: self._count] = self.cells[: self._count]
            self.cells = grown
        masks = np.zeros((len(slots), len(self.band), self._width), np.uint8)
        for mask, slot in zip(masks, slots, strict=True):
            placed = texts.placed[slot]
            y, (height, width) = placed.y - self.band.start, placed.mask.shape
            mask[y : y + height, placed.x : placed.x + width] = placed.mask
        self.cells[self._count : stop] = self._pigment.differences(masks, grounds, self._lines)
        self._known[slots, grounds] = np.arange(self._count, stop)
        self._count = stop
