"""Scene → PNG: cells, lines and the colour bar as whole pixels by numpy, glyphs by matplotlib's Agg.

A painter keeps the ink of every text from picture to picture; a picture's bytes do not depend on what was painted
before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt

from attnlens import __version__
from attnlens.render import caption, png
from attnlens.render.canvas import Canvas
from attnlens.render.colour import ACCENT, FAINT, GRID, HATCH, INK, PAPER, Colours, is_dark
from attnlens.render.fonts import BOLD, REGULAR, SETTINGS, Ink, Typesetter
from attnlens.render.layout import Layout, lay_out
from attnlens.render.scene import Scene

SIZE = 9.0
FLOOR = 6.25
"""Points of the text in a cell: at first, and when condensed as far as it goes."""

SMALL = 8.5
"""Points of the numbers and of the title's details."""


class Painter:
    """Paints scenes of any shape at one resolution.

    Raises:
        InputError: dpi is unusable.
    """

    def __init__(self, dpi: int = 100) -> None:
        lay_out(1, 1, dpi)
        self.dpi = dpi
        self._colours: dict[str, Colours] = {}
        self._type = Typesetter(dpi)

    @property
    def missing(self) -> int:
        """How many different characters the font lacks; they were drawn as code points."""
        return len(self._type.missing)

    def paint(self, scene: Scene) -> bytes:
        """The PNG of a scene.

        Raises:
            InputError: unknown colormap, or the picture would be too large.
        """
        return png.encode(self.pixels(scene), dpi=self.dpi, text={"Software": f"attnlens {__version__}"})

    def pixels(self, scene: Scene) -> npt.NDArray[np.uint8]:
        """The picture as uint8 (y, x, rgb). Raises as `paint` does."""
        if (colours := self._colours.get(scene.colormap)) is None:
            colours = self._colours[scene.colormap] = Colours(scene.colormap)
        with matplotlib.rc_context(SETTINGS):
            layout, title = self._lay_out(scene)
            canvas = Canvas(layout.width, layout.height, PAPER)
            self._cells(canvas, layout, scene, colours)
            self._lines(canvas, layout, scene)
            self._title(canvas, layout, title)
            self._numbers(canvas, layout, scene)
            self._bar(canvas, layout, scene, colours)
        return canvas.pixels

    def _lay_out(self, scene: Scene) -> tuple[Layout, list[Ink]]:
        """The layout, and the lines of the title: the details take as many as they need."""
        shape = len(scene.rows), len(scene.columns), self.dpi
        layout = lay_out(*shape)
        room = layout.width - layout.left - layout.px(8)
        headline = self._type.fit(caption.headline(scene), room, layout.px(26), size=11.0, floor=8.0, name=BOLD)
        lines: list[str] = []
        for detail in caption.details(scene):
            joined = f"{lines[-1]}   ·   {detail}" if lines else detail
            if lines and self._type.width(joined, SMALL) <= room:
                lines[-1] = joined
            else:
                lines.append(detail)
        return lay_out(*shape, len(lines) - 1), [headline, *(self._line(line, room) for line in lines)]

    def _cells(self, canvas: Canvas, layout: Layout, scene: Scene, colours: Colours) -> None:
        """Every cell: colour, a hatch where there is no attention, and text in its middle."""
        fill, empty = colours.fill(scene.matrix, scene.scale), np.isnan(scene.matrix)
        dark = is_dark(fill)
        line = layout.px(1)
        block = np.repeat(np.repeat(fill, layout.cell_height, axis=0), layout.cell_width, axis=1)
        if empty.any():
            y, x = np.ogrid[: block.shape[0], : block.shape[1]]
            hatched = np.repeat(np.repeat(empty, layout.cell_height, axis=0), layout.cell_width, axis=1)
            block[hatched & ((x + y) // layout.px(3) % 3 == 0)] = HATCH[1]
        for offset in range(line):
            block[offset :: layout.cell_height] = GRID
            block[:, offset :: layout.cell_width] = GRID
        canvas.pixels[layout.top : layout.bottom, layout.left : layout.right] = block
        margin = layout.px(4)
        width, height = layout.cell_width - line - 2 * margin, layout.cell_height - line - 2 * layout.px(2)
        for row, texts in enumerate(scene.labels):
            top = layout.top + row * layout.cell_height + line
            for column, text in enumerate(texts):
                if text:
                    ink = self._type.fit(text, width, height, size=SIZE, floor=FLOOR)
                    middle = layout.left + column * layout.cell_width + (line + layout.cell_width) / 2
                    paper = PAPER if dark[row, column] else INK
                    canvas.ink(ink, middle, self._baseline(ink, top, layout.cell_height - line), paper, "middle")

    def _lines(self, canvas: Canvas, layout: Layout, scene: Scene) -> None:
        """The frame, the line above the final prediction, and the one between prompt and generation."""
        thick = layout.px(2)
        width, height = layout.right - layout.left, layout.bottom - layout.top
        for y in (layout.top - thick, layout.bottom):
            canvas.box(layout.left - thick, y, width + 2 * thick, thick, INK)
        for x in (layout.left - thick, layout.right):
            canvas.box(x, layout.top, thick, height, INK)
        # A light halo keeps the two inner lines visible on dark colours.
        halo = layout.px(1)
        if scene.final_row:
            y = layout.top + scene.final_row * layout.cell_height - thick // 2
            canvas.box(layout.left, y - halo, width, thick + 2 * halo, PAPER)
            canvas.box(layout.left, y, width, thick, INK)
        if scene.boundary is not None:
            x = layout.left + scene.boundary * layout.cell_width - thick // 2
            canvas.box(x - halo, layout.top, thick + 2 * halo, height, PAPER)
            canvas.box(x, layout.top - layout.px(6), thick, height + layout.px(40), INK)

    def _title(self, canvas: Canvas, layout: Layout, title: Sequence[Ink]) -> None:
        """The lines above the cells: what the picture says, and where it comes from."""
        for number, ink in enumerate(title):
            baseline = layout.px(24) if number == 0 else layout.px(44) + (number - 1) * layout.px(15)
            canvas.ink(ink, layout.left, baseline, FAINT if number else INK)

    def _numbers(self, canvas: Canvas, layout: Layout, scene: Scene) -> None:
        """Row numbers left, column numbers below, and what they count."""
        for row, number in enumerate(scene.rows):
            top = layout.top + row * layout.cell_height
            ink = self._line(str(number), layout.left - layout.px(12))
            canvas.ink(ink, layout.left - layout.px(8), self._baseline(ink, top, layout.cell_height), INK, "end")
        canvas.ink(
            self._line("layer", layout.left), layout.left - layout.px(8), layout.top - layout.px(6), FAINT, "end"
        )
        ticks = layout.bottom + layout.px(17)
        for index, column in enumerate(scene.columns):
            middle = layout.left + (index + 0.5) * layout.cell_width
            special, own = column in scene.subject.special, column == scene.query
            ink = self._line(f"{column}*" if special else str(column), layout.cell_width, bold=own or special)
            canvas.ink(ink, middle, ticks, ACCENT if special else INK, "middle")
            if own:
                canvas.box(round(middle - ink.width / 2), ticks + layout.px(3), ink.width, layout.px(2), INK)
        self._sides(canvas, layout, scene)

    def _sides(self, canvas: Canvas, layout: Layout, scene: Scene) -> None:
        """Below the column numbers: which side of the boundary is the prompt, or which part this is."""
        baseline, gap = layout.bottom + layout.px(37), layout.px(8)
        if scene.boundary is None:
            part = "prompt" if scene.columns.start < scene.subject.n_prompt else "generated"
            ink = self._line(f"token ({part})", layout.right - layout.left)
            canvas.ink(ink, (layout.left + layout.right) / 2, baseline, FAINT, "middle")
            return
        x = layout.left + scene.boundary * layout.cell_width
        canvas.ink(self._line("◂ prompt", x), x - gap, baseline, FAINT, "end")
        canvas.ink(self._line("generated ▸", layout.width - x), x + gap, baseline, FAINT)

    def _bar(self, canvas: Canvas, layout: Layout, scene: Scene, colours: Colours) -> None:
        """The colour bar at the right, as high as the cells, with numbers."""
        x, width, height = layout.right + layout.px(20), layout.px(16), layout.bottom - layout.top
        ramp = colours.ramp()[::-1]
        canvas.pixels[layout.top : layout.bottom, x : x + width] = ramp[np.arange(height) * len(ramp) // height, None]
        low, high = scene.scale
        parts = 5 if height >= 5 * layout.px(16) else 1
        for tick in range(parts + 1):
            y = layout.bottom - round(tick / parts * (height - 1)) - 1
            ink = self._line(f"{low + (high - low) * tick / parts:.1f}", layout.px(30))
            canvas.box(x + width, y, layout.px(4), layout.px(1), INK)
            canvas.ink(ink, x + width + layout.px(8), self._baseline(ink, y, 1), INK)

    def _line(self, text: str, width: int, *, bold: bool = False) -> Ink:
        """A line of small text outside the cells."""
        return self._type.fit(text, width, 10**4, size=SMALL, floor=FLOOR, name=BOLD if bold else REGULAR)

    def _baseline(self, ink: Ink, top: int, height: int) -> int:
        """The baseline that centres capitals in a strip, moved where the ink would leave the strip."""
        capital = 0.73 * ink.size * self.dpi / 72
        baseline = round(top + (height + capital) / 2)
        if len(ink.mask) > height:
            return baseline
        return min(max(baseline, top + ink.rise), top + height - len(ink.mask) + ink.rise)
