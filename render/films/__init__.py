"""Animations: frames of equal size → bytes of one file. To add one, write a file like `gif` and name it in `films`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attnlens.schemas.errors import InputError
from attnlens.schemas.nearest import did_you_mean

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Reel:
    """What holds for all frames: pixels, pictures a second, pixels an inch, and the recipe as text."""

    width: int
    height: int
    fps: float
    dpi: int
    count: int
    recipe: str


class Film(Protocol):
    """One format, a module: `NAME` is what `--animate` calls it, `SUFFIX` what its files end with."""

    NAME: str
    SUFFIX: str

    def check(self) -> None:
        """Raise MissingExtraError where a package is missing."""

    def encode(self, frames: Iterable[Pixels], reel: Reel) -> bytes:
        """A file of frames uint8 (y, x, rgb). They are asked for one by one, and not kept."""

    def recipe(self, data: bytes) -> str | None:
        """The recipe's text in a file's bytes; None where the bytes are not of this format, or hold none."""


def films() -> tuple[Film, ...]:
    """Every format."""
    from attnlens.render.films import apng, gif, mp4

    return gif, apng, mp4


def film_named(name: str) -> Film:
    """The format that `--animate` calls `name`.

    Raises:
        InputError: there is none.
    """
    for found in films():
        if name == found.NAME:
            return found
    known = [one.NAME for one in films()]
    near = did_you_mean(name, known)
    raise InputError(f"--animate {name!r}: there is no such format, choose {', '.join(known)}{near}")
