"""Colours as bytes of pixels: three of them (exact), or one that points into a palette (smaller, faster).

A *ground* is what lies under a text: a level of the colormap, `striped` (no value), or `blank` (paper). Both kinds of
pigment answer the same questions, so that what composes a picture does not know which of them it uses.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attnlens.render.look.colour import GRID, ON_DARK, ON_LIGHT, Colour, Colours, Pixels, Theme, is_dark

Numbers = npt.NDArray[np.intp]


class Pigment(Protocol):
    """How colours become bytes."""

    striped: int
    blank: int

    @property
    def depth(self) -> int:
        """Bytes a pixel."""

    @property
    def palette(self) -> Pixels | None:
        """Colours (index, rgb) that the bytes point to; None where the bytes are the colours."""

    def solid(self, colour: Colour) -> Pixels:
        """One colour, bytes (depth)."""

    def on_paper(self, mask: Pixels, colour: Colour) -> Pixels:
        """Text of one of the theme's colours on paper: coverage (y, x) → bytes (y, x·depth)."""

    def cell_lines(self, width: int, line: int, stripe: int) -> Pixels:
        """One line of pixels of a cell without text, for every ground: bytes (ground, width·depth).

        Its first `line` pixels are the line between cells.
        """

    def shades(self, grounds: Numbers) -> Numbers:
        """Which grounds give text that differs: equal numbers, equal `differences`."""

    def differences(self, masks: Pixels, grounds: Numbers, lines: Pixels) -> Pixels:
        """Texts (n, y, x) on `grounds` (n), each line of bytes minus the one above: (n, y + 1, x·depth).

        Above the first line and below the last one is the ground without text. `lines` come from `cell_lines`.
        """


class Rgb:
    """Exact colours, three bytes a pixel."""

    depth = 3
    palette = None

    def __init__(self, colours: Colours, theme: Theme) -> None:
        self._table, self._theme = colours.table, theme
        self.striped = len(colours.table)
        self.blank = self.striped + 1
        ink = np.where(is_dark(colours.table)[:, None], ON_DARK, ON_LIGHT)
        self._ink = np.concatenate([ink, [theme.ink, theme.ink]]).astype(np.uint16)

    def solid(self, colour: Colour) -> Pixels:
        """See `Pigment`."""
        return np.array(colour, np.uint8)

    def on_paper(self, mask: Pixels, colour: Colour) -> Pixels:
        """See `Pigment`."""
        cover = np.repeat(mask, 3, axis=-1).astype(np.uint16)
        width = mask.shape[-1]
        return _blend(np.tile(np.array(self._theme.paper, np.uint16), width),
                      np.tile(np.array(colour, np.uint16), width), cover)  # fmt: skip

    def cell_lines(self, width: int, line: int, stripe: int) -> Pixels:
        """See `Pigment`."""
        lines = np.empty((self.blank + 1, width, 3), np.uint8)
        lines[: self.striped] = self._table[:, None]
        light, dark = np.array(self._theme.hatch, np.uint8)
        lines[self.striped] = np.where(_striped(width, stripe)[:, None], dark, light)
        lines[self.blank] = self._theme.paper
        lines[:, :line] = GRID
        return lines.reshape(len(lines), -1)

    def shades(self, grounds: Numbers) -> Numbers:
        """See `Pigment`."""
        return grounds

    def differences(self, masks: Pixels, grounds: Numbers, lines: Pixels) -> Pixels:
        """See `Pigment`."""
        count, height, width = masks.shape
        ground = lines[grounds][:, None]
        ink = np.tile(self._ink[grounds], width)[:, None]
        inked = _blend(ground.astype(np.uint16), ink, np.repeat(masks, 3, axis=-1).astype(np.uint16))
        result = np.empty((count, height + 1, 3 * width), np.uint8)
        _between(ground, inked, result)
        return result


class Indexed:
    """A palette of 256: groups of the colormap's levels, each in steps from the ground to the colour of text.

    Groups are cut so that the largest error of a fill is as small as it can be; `error` tells it, of 255. Steps of text
    are given up for groups where that error would pass `TOLERATED`.
    """

    depth = 1
    TOLERATED = 14

    def __init__(self, colours: Colours, theme: Theme) -> None:
        self.striped, self.blank = len(colours.table), len(colours.table) + 1
        dark = is_dark(colours.table)
        for self._steps in (8, 7, 6, 5, 4):
            # Five more ramps stand on stripes and paper, one single colour behind them all is the grid's.
            room = 255 // self._steps - 5
            self.error, groups = _grouped(colours.table, dark, room)
            if self.error <= self.TOLERATED:
                break
        self._group = np.empty(len(colours.table), np.intp)
        for number, levels in enumerate(groups):
            self._group[levels] = number
        parts = [colours.table[levels].astype(int) for levels in groups]
        middles = [(part.min(0) + part.max(0)) // 2 for part in parts]
        inks = [ON_DARK if dark[levels[0]] else ON_LIGHT for levels in groups]
        self._ground = len(groups)
        self._papers = {
            colour: self._ground + 2 + number for number, colour in enumerate((theme.ink, theme.faint, theme.accent))
        }
        self._paper = theme.paper
        grounds = np.array([*middles, *theme.hatch, theme.paper, theme.paper, theme.paper])
        texts = np.array([*inks, theme.ink, theme.ink, *self._papers])
        share = np.arange(self._steps) / (self._steps - 1)
        ramps = grounds[:, None] + (texts - grounds)[:, None] * share[:, None]
        self.palette: Pixels = np.concatenate([np.round(ramps).reshape(-1, 3), [GRID]]).astype(np.uint8)

    def solid(self, colour: Colour) -> Pixels:
        """See `Pigment`."""
        off = np.abs(self.palette.astype(int) - np.array(colour)).sum(axis=1)
        return np.array([np.argmin(off)], np.uint8)

    def on_paper(self, mask: Pixels, colour: Colour) -> Pixels:
        """See `Pigment`."""
        return np.asarray(self._stepped(mask) + np.uint8(self._papers[colour] * self._steps))

    def cell_lines(self, width: int, line: int, stripe: int) -> Pixels:
        """See `Pigment`."""
        lines = np.empty((self.blank + 1, width), np.uint8)
        lines[: self.striped] = (self._group * self._steps)[:, None]
        lines[self.striped] = (self._ground + _striped(width, stripe)) * self._steps
        lines[self.blank] = (self._ground + 2) * self._steps
        lines[:, :line] = len(self.palette) - 1
        return lines

    def shades(self, grounds: Numbers) -> Numbers:
        """See `Pigment`."""
        return np.zeros_like(grounds)

    def differences(self, masks: Pixels, grounds: Numbers, lines: Pixels) -> Pixels:
        """See `Pigment`. A ground adds the same number to every line, which leaves no trace in what lies between."""
        count, height, width = masks.shape
        result = np.empty((count, height + 1, width), np.uint8)
        _between(np.zeros((count, 1, width), np.uint8), self._stepped(masks), result)
        return result

    def _stepped(self, masks: Pixels) -> Pixels:
        return self._step_of[masks]

    @cached_property
    def _step_of(self) -> Pixels:
        return np.round(np.arange(256) * (self._steps - 1) / 255).astype(np.uint8)


def _blend(ground: npt.NDArray[np.uint16], ink: npt.NDArray[np.uint16], cover: npt.NDArray[np.uint16]) -> Pixels:
    """ground + (ink - ground)·cover/255, rounded to nearest; exact in 16 bits."""
    wide = ink * cover
    wide += ground * (255 - cover)
    wide += 128
    wide += wide >> 8
    wide >>= 8
    return wide.astype(np.uint8)


def _between(ground: Pixels, inked: Pixels, out: Pixels) -> None:
    """Each line minus the one above, `ground` around them."""
    np.subtract(inked[:, :1], ground, out=out[:, :1])
    np.subtract(inked[:, 1:], inked[:, :-1], out=out[:, 1:-1])
    np.subtract(ground, inked[:, -1:], out=out[:, -1:])


def _striped(width: int, stripe: int) -> npt.NDArray[np.bool_]:
    """Where the darker stripes of a cell without a value are. Upright, so that all lines of the cell are equal."""
    return np.asarray(np.arange(width) // stripe % 3 == 0)


def _grouped(table: Pixels, dark: npt.NDArray[np.bool_], room: int) -> tuple[int, list[Numbers]]:
    """Levels of a colour table in at most `room` groups, with the least error of their middles; and that error.

    Groups are runs of levels that have one colour of text. A map that goes back and forth is put in order of its
    colours first where that is better.
    """
    red, green, blue = table.T
    found: list[tuple[int, list[Numbers]]] = []
    for order in (np.arange(len(table)), np.lexsort((blue, red, green, dark))):
        colours, light = table[order].astype(int), dark[order]
        error = bisect_left(range(256), -room, key=lambda error: -len(_runs_within(colours, light, error)))
        if error < 256:
            found.append((error, [order[start:stop] for start, stop in _runs_within(colours, light, error)]))
    return min(found, key=lambda one: one[0])


def _runs_within(table: npt.NDArray[np.int_], dark: npt.NDArray[np.bool_], error: int) -> list[tuple[int, int]]:
    """The fewest runs in which no channel is further than `error` from the middle, and the colour of text is one."""
    runs: list[tuple[int, int]] = []
    start = 0
    low, high = table[0], table[0]
    for number in range(1, len(table)):
        below, above = np.minimum(low, table[number]), np.maximum(high, table[number])
        if dark[number] == dark[start] and int((above - below).max()) <= 2 * error:
            low, high = below, above
        else:
            runs.append((start, number))
            start = number
            low, high = table[number], table[number]
    return [*runs, (start, len(table))]
