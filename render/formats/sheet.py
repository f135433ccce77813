"""Several pictures on one page: where each goes, and the page's pixels strip by strip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attnlens.render.look.furniture import layout_of
from attnlens.render.look.layout import LIMIT
from attnlens.render.scene import Scene
from attnlens.schemas.errors import InputError

if TYPE_CHECKING:
    from attnlens.render.formats import Pixels, Rasteriser

ASPECT = 1.6
"""Width by height that a page comes as near to as it can."""


@dataclass(frozen=True)
class Grid:
    """A page of equal places in rows of `across`, each `width` × `height` pixels."""

    across: int
    down: int
    width: int
    height: int


def grid(sizes: Sequence[tuple[int, int]]) -> Grid:
    """The places for pictures of these widths and heights.

    Raises:
        InputError: the page would be too large for any viewer.
    """
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    wanted = round(math.sqrt(len(sizes) * ASPECT * height / width))
    across = min(max(1, wanted), len(sizes), max(1, LIMIT // width))
    down = math.ceil(len(sizes) / across)
    if max(across * width, down * height) > LIMIT:
        raise InputError(
            f"a page of {len(sizes)} pictures would have {across * width} × {down * height} pixels, the limit is "
            f"{LIMIT} either way: choose a larger --step, a smaller --dpi, or --format svg"
        )
    return Grid(across, down, width, height)


def strips(scenes: Sequence[Scene], painter: Rasteriser) -> tuple[int, int, Iterator[Pixels]]:
    """Width and height of the page, and its rows of pictures as pixels, from the top."""
    layouts = [layout_of(scene, painter.dpi)[0] for scene in scenes]
    places = grid([(layout.width, layout.height) for layout in layouts])

    def rows() -> Iterator[Pixels]:
        for first in range(0, len(scenes), places.across):
            strip = None
            for number, scene in enumerate(scenes[first : first + places.across]):
                pixels = painter.pixels(scene)
                if strip is None:
                    paper = pixels[0, 0]
                    strip = np.empty((places.height, places.across * places.width, 3), np.uint8)
                    strip[:] = paper
                left = number * places.width
                strip[: len(pixels), left : left + pixels.shape[1]] = pixels
            assert strip is not None
            yield strip

    return places.across * places.width, places.down * places.height, rows()
