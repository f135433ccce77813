"""Scene → PNG. What stays the same is drawn once, a text is drawn once, a picture is put together from them.

A painter keeps what it has drawn from picture to picture; the bytes do not depend on what was painted before.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from attnlens import __version__
from attnlens.render.look.colour import THEMES, Colours
from attnlens.render.look.furniture import FLOOR, SIZE, Group, groups, layout_of
from attnlens.render.look.layout import Cell, Layout, lay_out
from attnlens.render.painter import png
from attnlens.render.painter.atlas import Placed, Texts
from attnlens.render.painter.fonts import Typesetter
from attnlens.render.painter.grid import Inks
from attnlens.render.painter.page import Pen
from attnlens.render.painter.pigment import Indexed, Pigment, Rgb
from attnlens.render.painter.sheet import Sheet, lasting
from attnlens.render.scene import Scene, Theme

_ORDINARY = "ÅÇgjpqyQ|()[]{}_$@/<>"
"""Reaches as high and low as ordinary text does; what reaches further is kept apart."""


class Painter:
    """Paints scenes of any shape at one resolution, in exact colours or with a palette of 256.

    Raises:
        InputError: dpi is unusable.
    """

    def __init__(self, dpi: int = 100, *, palette: bool = False) -> None:
        lay_out(1, 1, dpi)
        self.dpi, self.palette = dpi, palette
        self._type = Typesetter(dpi)
        self._paints = lru_cache(maxsize=4)(self._new_paints)
        self._inks = lru_cache(maxsize=1)(self._new_inks)
        self._sheets = lru_cache(maxsize=2)(self._new_sheet)

    @property
    def missing(self) -> int:
        """How many different characters no font here has; they were drawn as code points."""
        return len(self._type.missing)

    @property
    def missing_characters(self) -> frozenset[str]:
        """Those characters."""
        return frozenset(self._type.missing)

    def paint(self, scene: Scene) -> bytes:
        """The PNG of a scene.

        Raises:
            InputError: unknown colormap, or the picture would be too large.
        """
        sheet, pigment = self._compose(scene)
        text = {"Software": f"attnlens {__version__}"}
        return png.encode(sheet.lines, sheet.squeezed(), palette=pigment.palette, dpi=self.dpi, text=text)

    def pixels(self, scene: Scene) -> npt.NDArray[np.uint8]:
        """The picture as uint8 (y, x, rgb). Raises as `paint` does."""
        sheet, pigment = self._compose(scene)
        flat = np.cumsum(sheet.lines[:, 1:], axis=0, dtype=np.uint8)
        if pigment.palette is not None:
            return np.asarray(pigment.palette[flat])
        return flat.reshape(len(flat), -1, 3)

    def _compose(self, scene: Scene) -> tuple[Sheet, Pigment]:
        layout, details = layout_of(scene, self.dpi)
        around = groups(scene, layout, details)
        sheet = self._sheets(layout, scene.theme, scene.colormap, lasting(around))
        sheet.draw(scene, around)
        return sheet, self._paints(scene.colormap, scene.theme)[1]

    def _new_paints(self, colormap: str, theme: Theme) -> tuple[Colours, Pigment, Pen]:
        colours = Colours(colormap)
        pigment: Pigment = Indexed(colours, THEMES[theme]) if self.palette else Rgb(colours, THEMES[theme])
        return colours, pigment, Pen(self._type, pigment)

    def _new_sheet(self, layout: Layout, theme: Theme, colormap: str, what: tuple[Group, ...]) -> Sheet:
        colours, _, pen = self._paints(colormap, theme)
        return Sheet(layout, THEMES[theme], colours, self._inks(layout.cell, theme, colormap), pen, what)

    def _new_inks(self, cell: Cell, theme: Theme, colormap: str) -> Inks:
        place = partial(_place, self._type, cell)
        ordinary = _place(self._type, replace(cell, width=100 * cell.width), _ORDINARY)
        band = range(ordinary.y, ordinary.y + len(ordinary.mask))
        return Inks(self._paints(colormap, theme)[1], Texts(place, band), cell)


def _place(typesetter: Typesetter, cell: Cell, text: str) -> Placed:
    """Where the ink of a text lies in a cell: in the middle, capitals centred, moved where it would leave its room."""
    room, line = cell.room, cell.line
    ink = typesetter.fit(text, cell.width - line - 2 * cell.px(4), len(room), size=SIZE, floor=FLOOR)
    height, width = ink.mask.shape
    capital = 0.73 * ink.size * cell.dpi / 72
    top = round((cell.height - line + capital) / 2) - ink.rise
    return Placed(
        mask=ink.mask,
        y=max(min(top, room.stop - height), room.start),
        x=round((line + cell.width - width) / 2),
    )
