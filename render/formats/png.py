"""PNG: the painter's bytes with the recipe put in, and pages that are written strip by strip."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens import __version__
from attnlens.render.formats.sheet import strips
from attnlens.render.recipes.recipe import LIMIT, to_text
from attnlens.render.scene import Scene

if TYPE_CHECKING:
    from attnlens.render.formats import Pixels, Rasteriser

NAME = "png"
SUFFIX = ".png"
KEYWORD = b"attnlens"
SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEADER = len(SIGNATURE) + 25
_PREFIX = KEYWORD + b"\0\0\0\0\0"  # not compressed, no language, no translated keyword


def encode(scene: Scene, painter: Rasteriser) -> bytes:
    """The PNG of a scene."""
    return with_recipe(painter.paint(scene), scene.recipe)


def page(scenes: Sequence[Scene], painter: Rasteriser, recipe: Mapping[str, Any]) -> bytes:
    """A PNG of several scenes. Only one row of them is in memory as pixels at a time."""
    width, height, rows = strips(scenes, painter)
    return with_recipe(_stream(width, height, painter.dpi, rows), recipe)


def with_recipe(data: bytes, recipe: Mapping[str, Any]) -> bytes:
    """The same PNG with a recipe in it."""
    return b"".join([data[:_HEADER], recipe_chunk(to_text(recipe)), data[_HEADER:]])


def recipe_chunk(text: str) -> bytes:
    """An iTXt chunk that holds a recipe's text."""
    return chunk(b"iTXt", _PREFIX + text.encode("ascii"))


def recipe(data: bytes) -> str | None:
    """The recipe in a PNG."""
    if not data.startswith(SIGNATURE):
        return None
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"iTXt" and data.startswith(_PREFIX, at + 8) and size <= LIMIT:
            return data[at + 8 + len(_PREFIX) : at + 8 + size].decode("utf-8", "replace")
        at += 12 + size
    return None


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk: length, kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _stream(width: int, height: int, dpi: int, rows: Iterable[Pixels]) -> bytes:
    squeeze = zlib.compressobj(1)
    parts = []
    above = np.zeros((1, 3 * width), np.uint8)
    for pixels in rows:
        flat = pixels.reshape(len(pixels), 3 * width)
        lines = np.empty((len(pixels), 1 + 3 * width), np.uint8)
        lines[:, 0] = 2  # the filter Up
        np.subtract(flat, np.concatenate([above, flat[:-1]]), out=lines[:, 1:])
        above = flat[-1:].copy()
        parts.append(squeeze.compress(lines.data))
    parts.append(squeeze.flush())
    per_metre = round(dpi / 0.0254)
    return b"".join(
        [
            SIGNATURE,
            chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
            chunk(b"pHYs", struct.pack(">2IB", per_metre, per_metre, 1)),
            chunk(b"tEXt", f"Software\0attnlens {__version__}".encode("latin-1")),
            *(chunk(b"IDAT", part) for part in parts if part),
            chunk(b"IEND", b""),
        ]
    )
