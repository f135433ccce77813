"""WebP, lossless: half of a PNG where time does not matter. The recipe is an XMP packet."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.render.formats.sheet import strips
from attnlens.render.formats.xml import escape
from attnlens.render.recipes.recipe import LIMIT, to_text
from attnlens.render.scene import Scene
from attnlens.schemas.errors import InputError

if TYPE_CHECKING:
    from attnlens.render.formats import Pixels, Rasteriser

NAME = "webp"
SUFFIX = ".webp"
SIDE = 16383
"""Most pixels in either direction that the format can hold."""

_PACKET = re.compile(rb"<attnlens:recipe>([^<]{0,%d})</attnlens:recipe>" % (6 * LIMIT))


def encode(scene: Scene, painter: Rasteriser) -> bytes:
    """The WebP of a scene."""
    return _save(painter.pixels(scene), scene.recipe)


def page(scenes: Sequence[Scene], painter: Rasteriser, recipe: Mapping[str, Any]) -> bytes:
    """A WebP of several scenes."""
    width, height, rows = strips(scenes, painter)
    _check(width, height)
    return _save(np.concatenate(list(rows)), recipe)


def recipe(data: bytes) -> str | None:
    """The recipe in a WebP."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    found = _PACKET.search(data)
    return unescape(found[1].decode("utf-8", "replace")) if found else None


def _check(width: int, height: int) -> None:
    if max(width, height) > SIDE:
        raise InputError(
            f"a WebP of {width} × {height} pixels is not possible, the format ends at {SIDE}: choose --format png, "
            "a smaller --window or --dpi, or a larger --step"
        )


def _save(pixels: Pixels, recipe: Mapping[str, Any]) -> bytes:
    from PIL import Image

    _check(pixels.shape[1], pixels.shape[0])
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:attnlens="urn:attnlens:recipe">'
        f"<attnlens:recipe>{escape(to_text(recipe))}</attnlens:recipe></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, quality=20, method=1, xmp=packet.encode("ascii"))
    return file.getvalue()
