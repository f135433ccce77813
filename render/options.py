"""What `lens render` is told."""

from __future__ import annotations

from dataclasses import dataclass

from attnlens.render.scene import Theme
from attnlens.schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """What is drawn and how. Plain values only: the options travel to worker processes and into recipes.

    capture: id of one capture; None draws all of them, each into a folder of its name if there are several.
    queries: `generated`, `prompt`, `all`, or positions on the timeline (`3,5-7`, `10:20:2`, `-1`; `schemas/ranges.py`).
    tokens: None for all columns, or those of these timeline positions.
    window, step: columns of a picture, and how far the next picture moves.
    layers: None for all, or a list of layers.
    heads: a reduction of the head axis, see `attnlens.render.attention.heads`; `each` draws a picture for every head.
    scale: what a colour stands for, see `attnlens.render.attention.scales`.
    text: what stands in the cells, see `attnlens.render.text.texts`; None is `token`, in maps `weight`.
    lens: which of the store's lenses the text and the prediction are read from; None is the first.
    map: None, or `LAYER` or `LAYER.HEAD`: pictures of queries × keys of this layer instead of layers × keys.
    cmap: a colormap of matplotlib. dpi: pixels an inch; a cell is 0.78 × 0.34 inch.
    format: one of `attnlens.render.formats`. sheet: all windows of a query on one page; with heads `each`, all heads of
    a window. palette: PNGs with 256 colours, smaller and drawn in half the time; fills are a little off.
    """

    capture: str | None = None
    queries: str = "generated"
    tokens: str | None = None
    window: int = 32
    step: int = 5
    layers: str | None = None
    heads: str = "max"
    scale: str = "raw"
    text: str | None = None
    lens: str | None = None
    map: str | None = None
    cmap: str = "coolwarm"
    theme: Theme = "light"
    dpi: int = 100
    format: str = "png"
    sheet: bool = False
    palette: bool = False


def select_theme(name: str) -> Theme:
    """The theme that `--theme` calls `name`.

    Raises:
        InputError: there is none.
    """
    if name not in ("light", "dark"):
        raise InputError(f"--theme {name!r}: there is no such theme, choose light or dark")
    return "light" if name == "light" else "dark"
