"""Everything of a picture but its cells, as boxes and lines of text at the places where the painter puts them.

Formats that keep text as text draw from this list, so that all of them say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from attnlens.render.formats import measure
from attnlens.render.look import caption
from attnlens.render.look.colour import THEMES, Colour, Colours, Theme
from attnlens.render.look.layout import Layout, lay_out
from attnlens.render.scene import Scene

Anchor = Literal["start", "middle", "end"]

SIZE, SMALL, FLOOR = 9.0, 8.5, 6.25
HEAD, HEAD_FLOOR = 11.0, 8.0
"""Points of the text in cells, of small text, how far both are condensed, and the same of the headline."""

BETWEEN = "   ·   "
"""Stands between details on one line."""


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text: its anchor point on the baseline in pixels, its size in points, its width in pixels.

    `asked`, at `wanted` points in `room` pixels, is what became `text`; who has the glyphs fits it again.
    """

    x: float
    y: float
    text: str
    size: float
    width: float
    colour: Colour
    anchor: Anchor = "start"
    bold: bool = False
    role: str = ""
    asked: str = ""
    wanted: float = SMALL
    floor: float = FLOOR
    room: float = 0.0


Item = Box | Line
Group = tuple[Callable[..., Iterator[Item]], tuple[Any, ...]]
"""What makes some items, and from what: equal groups make equal items, so a format may keep what it made of one."""


def layout_of(scene: Scene, dpi: int) -> tuple[Layout, tuple[str, ...]]:
    """The layout, and the lines of details below the headline: as many as they need."""
    beside = bool(scene.row_labels), bool(scene.column_labels), scene.strip is not None
    return _wrapped(len(scene.rows), len(scene.columns), dpi, beside, caption.details(scene))


@lru_cache(maxsize=256)
def _wrapped(
    n_row: int, n_column: int, dpi: int, beside: tuple[bool, bool, bool], details: tuple[str, ...]
) -> tuple[Layout, tuple[str, ...]]:
    row_labels, column_labels, strip = beside
    make = partial(lay_out, n_row, n_column, dpi, row_labels=row_labels, column_labels=column_labels, strip=strip)
    layout = make()
    room = layout.width - layout.left - layout.px(8)
    lines: list[str] = []
    for detail in details:
        joined = f"{lines[-1]}{BETWEEN}{detail}" if lines else detail
        if lines and measure.width(joined, SMALL * dpi / 72) <= room:
            lines[-1] = joined
        else:
            lines.append(detail)
    return make(extra_lines=len(lines) - 1), tuple(lines)


def groups(scene: Scene, layout: Layout, details: tuple[str, ...]) -> tuple[Group, ...]:
    """What is drawn over the cells, in this order."""
    special = tuple(column in scene.subject.special for column in scene.columns)
    own = None if scene.query not in scene.columns else scene.columns.index(scene.query)
    part = "prompt" if scene.columns[0] < scene.subject.n_prompt else "generated"
    theme = THEMES[scene.theme]
    return (
        (_frame, (layout, theme)),
        (inner_lines, (layout, theme, scene.final_row, scene.row_boundary, scene.boundary)),
        (title, (layout, theme, caption.headline(scene), *details)),
        (_rows, (layout, theme, scene.rows, scene.row_name, scene.row_labels)),
        (columns, (layout, theme, scene.columns, special, own, scene.column_labels)),
        (sides, (layout, theme, scene.boundary, part)),
        (_bar, (layout, theme, scene.colormap, scene.scale, scene.ticks, scene.bar)),
        *([] if scene.strip is None else [(_strip, (layout, theme, scene.strip.label))]),
    )


def rise(layout: Layout) -> int:
    """From the top of a cell's box to the baseline of its text."""
    return round((layout.cell_height - layout.px(1) + 0.73 * SIZE * layout.dpi / 72) / 2)


def baseline(size: float, top: float, height: float, dpi: int) -> float:
    """The baseline that centres capitals of `size` points in a strip."""
    return round(top + (height + 0.73 * size * dpi / 72) / 2)


def _frame(layout: Layout, theme: Theme) -> Iterator[Item]:
    """The frame around the cells."""
    thick = layout.px(2)
    width, height = layout.right - layout.left, layout.bottom - layout.top
    for y in (layout.top - thick, layout.bottom):
        yield Box(layout.left - thick, y, width + 2 * thick, thick, theme.ink)
    for x in (layout.left - thick, layout.right):
        yield Box(x, layout.top, thick, height, theme.ink)


def inner_lines(
    layout: Layout, theme: Theme, final_row: int | None, row_boundary: int | None, boundary: int | None
) -> Iterator[Item]:
    """The line above the final prediction, and those between prompt and generation."""
    thick, halo = layout.px(2), layout.px(1)
    width, height = layout.right - layout.left, layout.bottom - layout.top
    for row in (final_row, row_boundary):
        if row:
            y = layout.top + row * layout.cell_height - thick // 2
            yield Box(layout.left, y - halo, width, thick + 2 * halo, theme.paper)
            yield Box(layout.left, y, width, thick, theme.ink)
    if boundary is not None:
        x = layout.left + boundary * layout.cell_width - thick // 2
        yield Box(x - halo, layout.top, thick + 2 * halo, height, theme.paper)
        yield Box(x, layout.top - layout.px(6), thick, height + layout.px(40), theme.ink)


def title(layout: Layout, theme: Theme, headline: str, *details: str) -> Iterator[Item]:
    """The lines above the cells: what the picture says, and where it comes from."""
    put, room = _writer(layout, theme), layout.width - layout.left - layout.px(8)
    yield put("headline", headline, layout.left, layout.px(24), room, size=HEAD, floor=HEAD_FLOOR, bold=True)
    for number, text in enumerate(details):
        yield put("details", text, layout.left, layout.px(44) + number * layout.px(15), room, colour=theme.faint)


def _rows(layout: Layout, theme: Theme, rows: tuple[int, ...], name: str, labels: tuple[str, ...]) -> Iterator[Item]:
    """Row numbers left, their texts between them and the cells, and what they count."""
    put, x = _writer(layout, theme), layout.left - layout.px(8)
    for row, number in enumerate(rows):
        y = baseline(SMALL, layout.top + row * layout.cell_height, layout.cell_height, layout.dpi)
        yield put("row", str(number), x - layout.row_label, y, layout.left - layout.px(12), anchor="end")
        if labels:
            yield put("label", labels[row], x, y, layout.row_label - layout.px(4), colour=theme.faint, anchor="end")
    yield put("name", name, x, layout.top - layout.px(6), layout.left, colour=theme.faint, anchor="end")


def columns(
    layout: Layout,
    theme: Theme,
    columns: tuple[int, ...],
    special: tuple[bool, ...],
    own: int | None,
    labels: tuple[str, ...],
) -> Iterator[Item]:
    """Column numbers below: special tokens with a star, the query underlined; their texts below them."""
    put, y = _writer(layout, theme), layout.bottom + layout.px(17)
    for index, (column, star) in enumerate(zip(columns, special, strict=True)):
        middle = layout.left + (index + 0.5) * layout.cell_width
        text, colour = (f"{column}*", theme.accent) if star else (str(column), theme.ink)
        role = "query" if index == own else "special" if star else "column"
        line = put(role, text, middle, y, layout.cell_width, colour=colour, anchor="middle", bold=role != "column")
        yield line
        if index == own:
            yield Box(middle - line.width / 2, y + layout.px(3), line.width, layout.px(2), theme.ink)
        if labels:
            below, room = y + layout.column_label, layout.cell_width - layout.px(4)
            yield put("label", labels[index], middle, below, room, colour=theme.faint, anchor="middle")


def sides(layout: Layout, theme: Theme, boundary: int | None, part: str) -> Iterator[Item]:
    """Below the column numbers: which side of the boundary is the prompt, or which part this is."""
    put, gap = _writer(layout, theme), layout.px(8)
    y = layout.bottom + layout.px(37) + layout.column_label
    if boundary is None:
        middle, room = (layout.left + layout.right) / 2, layout.right - layout.left
        yield put("side", f"token ({part})", middle, y, room, colour=theme.faint, anchor="middle")
        return
    x = layout.left + boundary * layout.cell_width
    yield put("side", "◂ prompt", x - gap, y, x, colour=theme.faint, anchor="end")
    yield put("side", "generated ▸", x + gap, y, layout.width - x, colour=theme.faint)


def _bar(
    layout: Layout,
    theme: Theme,
    colormap: str,
    scale: tuple[float, float],
    ticks: tuple[tuple[float, str], ...],
    name: str,
) -> Iterator[Item]:
    """The colour bar at the right, as high as the cells, with numbers, and above it what they count."""
    x, width, height = layout.bar_left, layout.px(16), layout.bottom - layout.top
    ramp = Colours(colormap).ramp()[::-1].tolist()
    first = 0
    for level, colour in enumerate(ramp):
        if level + 1 == len(ramp) or ramp[level + 1] != colour:
            top, end = (-(-height * edge // len(ramp)) for edge in (first, level + 1))
            yield Box(x, layout.top + top, width, end - top, (colour[0], colour[1], colour[2]))
            first = level + 1
    put, (low, high) = _writer(layout, theme), scale
    for value, text in ticks or even_ticks(layout, scale):
        y = layout.bottom - round((value - low) / (high - low) * (height - 1)) - 1
        yield Box(x + width, y, layout.px(4), layout.px(1), theme.ink)
        yield put("tick", text, x + width + layout.px(8), baseline(SMALL, y, 1, layout.dpi), layout.px(40))
    if name:
        y, end = layout.top - layout.px(9), layout.width - layout.px(6)
        yield put("bar", name, end, y, end - layout.strip_right, colour=theme.faint, anchor="end")


def _strip(layout: Layout, theme: Theme, label: str) -> Iterator[Item]:
    """The frame of the column beside the cells, and its name below."""
    thick, left, width = layout.px(2), layout.strip_left, layout.cell_width
    for y in (layout.top - thick, layout.bottom):
        yield Box(left - thick, y, width + 2 * thick, thick, theme.ink)
    for x in (left - thick, layout.strip_right):
        yield Box(x, layout.top, thick, layout.bottom - layout.top, theme.ink)
    put, y, room = _writer(layout, theme), layout.bottom + layout.px(17), width + layout.px(24)
    yield put("strip", label, left + width / 2, y, room, colour=theme.faint, anchor="middle")


def even_ticks(layout: Layout, scale: tuple[float, float]) -> tuple[tuple[float, str], ...]:
    """Ticks of the colour bar where the scale names none."""
    low, high = scale
    parts = 5 if layout.bottom - layout.top >= 5 * layout.px(16) else 1
    values = [low + (high - low) * part / parts for part in range(parts + 1)]
    return tuple((value, f"{value:.1f}") for value in values)


def _writer(layout: Layout, theme: Theme) -> Callable[..., Line]:
    """Makes lines of small text that fit."""
    pixels = layout.dpi / 72

    def put(
        role: str,
        text: str,
        x: float,
        y: float,
        room: float,
        *,
        colour: Colour = theme.ink,
        anchor: Anchor = "start",
        size: float = SMALL,
        floor: float = FLOOR,
        bold: bool = False,
    ) -> Line:
        face = measure.BOLD if bold else measure.REGULAR
        fitted = measure.fit(text, room / pixels, size=size, floor=floor, name=face)
        width = fitted.width * pixels
        return Line(x, y, fitted.text, fitted.size, width, colour, anchor, bold, role, text, size, floor, room)

    return put
