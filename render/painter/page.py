"""Boxes and lines of text on paper: what stands around the cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from attnlens.render.look.colour import Colour, Pixels
from attnlens.render.look.furniture import BETWEEN, Box, Item, Line
from attnlens.render.painter.fonts import BOLD, REGULAR, Typesetter
from attnlens.render.painter.pigment import Pigment

_KEPT = 1024
_ANY_HEIGHT = 10**4


class Pen:
    """Puts items on areas of paper; a text that comes again is not drawn again."""

    def __init__(self, typesetter: Typesetter, pigment: Pigment) -> None:
        self._typesetter, self._pigment = typesetter, pigment
        self._blocks: dict[tuple[str, float, float, float, bool, Colour], tuple[Pixels, int]] = {}

    def put(self, items: Iterable[Item], area: Pixels, first: int) -> None:
        """Draw what falls on `area`, bytes (y, x·depth) of the picture from line `first` on."""
        for item in items:
            if isinstance(item, Box):
                self._box(item, area, first)
            else:
                self._line(item, area, first)

    def _box(self, box: Box, area: Pixels, first: int) -> None:
        top, left = round(box.y) - first, round(box.x)
        bottom, right = top + round(box.height), left + round(box.width)
        pixels = area.reshape(len(area), -1, self._pigment.depth)
        pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = self._pigment.solid(box.colour)

    def _line(self, line: Line, area: Pixels, first: int) -> None:
        """Details that fit are put down word by word: what changes from picture to picture are a few numbers."""
        words = [] if line.bold or line.anchor != "start" else _words(line.asked)
        widths = [self._typesetter.width(word, line.wanted) if word else 0.0 for word in words]
        space = self._typesetter.width(" ", line.wanted)
        if len(words) < 2 or sum(widths) + space * (len(words) - 1) > line.room:
            self._part(line, area, first)
            return
        x = line.x
        for word, width in zip(words, widths, strict=True):
            if word:
                self._part(replace(line, asked=word, x=x), area, first)
            x += width + space

    def _part(self, line: Line, area: Pixels, first: int) -> None:
        block, rise = self._block(line)
        depth = self._pigment.depth
        height, width = len(block), block.shape[1] // depth
        left = round(line.x - {"start": 0.0, "middle": width / 2, "end": float(width)}[line.anchor])
        top = round(line.y) - rise - first
        skip_y, skip_x = max(-top, 0), max(-left, 0)
        target = area[top + skip_y : max(top + height, 0), (left + skip_x) * depth : max((left + width) * depth, 0)]
        target[:] = block[skip_y : skip_y + target.shape[0], skip_x * depth : skip_x * depth + target.shape[1]]

    def _block(self, line: Line) -> tuple[Pixels, int]:
        key = (line.asked, line.wanted, line.floor, line.room, line.bold, line.colour)
        if (found := self._blocks.get(key)) is None:
            if len(self._blocks) >= _KEPT:
                self._blocks.clear()
            name = BOLD if line.bold else REGULAR
            size, floor = line.wanted, line.floor
            ink = self._typesetter.fit(line.asked, int(line.room), _ANY_HEIGHT, size=size, floor=floor, name=name)
            found = self._blocks[key] = self._pigment.on_paper(ink.mask, line.colour), ink.rise
        return found


def _words(text: str) -> list[str]:
    """What stands between single spaces; a detail that is not ASCII stays whole, for its script may run leftwards."""
    words: list[str] = []
    for number, part in enumerate(text.split(BETWEEN)):
        words += BETWEEN.split(" ")[1:-1] if number else []
        words += part.split(" ") if part.isascii() else [part]
    return words
