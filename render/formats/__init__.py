"""Formats of pictures: Scene → bytes. To add one, write a file like `webp` and name it in `FORMATS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from attnlens.render.scene import Scene
from attnlens.schemas.errors import InputError
from attnlens.schemas.nearest import did_you_mean

Pixels = npt.NDArray[np.uint8]


class Rasteriser(Protocol):
    """What paints pixels; formats that keep text as text need its resolution only."""

    @property
    def dpi(self) -> int:
        """Pixels an inch."""

    def paint(self, scene: Scene) -> bytes:
        """The PNG of a scene."""

    def pixels(self, scene: Scene) -> Pixels:
        """The picture as uint8 (y, x, rgb)."""


class Format(Protocol):
    """One format, a module: `NAME` is what `--format` calls it, `SUFFIX` what its files end with."""

    NAME: str
    SUFFIX: str

    def encode(self, scene: Scene, painter: Rasteriser) -> bytes:
        """One picture, its recipe inside."""

    def page(self, scenes: Sequence[Scene], painter: Rasteriser, recipe: Mapping[str, Any]) -> bytes:
        """Several pictures on one page, with the recipe of the page."""

    def recipe(self, data: bytes) -> str | None:
        """The recipe's text in a file's bytes; None where the bytes are not of this format, or hold none."""


def formats() -> tuple[Format, ...]:
    """Every format, the default one first."""
    from attnlens.render.formats import pdf, png, svg, webp

    return png, svg, pdf, webp


def format_named(name: str) -> Format:
    """The format that `--format` calls `name`.

    Raises:
        InputError: there is none.
    """
    for found in formats():
        if name == found.NAME:
            return found
    known = [one.NAME for one in formats()]
    near = did_you_mean(name, known)
    raise InputError(f"--format {name!r}: there is no such format, choose {', '.join(known)}{near}")
