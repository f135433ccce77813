"""Whether a picture that is already there need not be drawn again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.render.recipes.recipe import from_text
from attnlens.schemas.errors import InputError

if TYPE_CHECKING:
    from attnlens.render.formats import Format

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_there(path: Path, form: Format, run: Mapping[str, Any], since: int) -> bool:
    """Whether `path` is a whole picture of this run: `run` is what every recipe of it holds.

    A capture that may still grow is known by its beginning only, so its pictures must not be older than `since`, when
    the capture last changed (nanoseconds).
    """
    try:
        growing = str(run["store"]).startswith("started:")
        if growing and path.stat().st_mtime_ns < since:
            return False
        data = path.read_bytes()
    except OSError:
        return False
    text = form.recipe(data) if is_whole(data) else None
    if text is None:
        return False
    try:
        found = from_text(text)
    except InputError:
        return False
    return all(found.get(key) == value for key, value in run.items())


def is_whole(data: bytes) -> bool:
    """Whether the bytes of a picture end where its format says, and, of a PNG, have the checksums they carry."""
    if data.startswith(_SIGNATURE):
        return _is_whole_png(data)
    if data.startswith(b"RIFF"):
        return len(data) == 8 + int.from_bytes(data[4:8], "little")
    return data.rstrip().endswith((b"</svg>", b"%%EOF"))


def _is_whole_png(data: bytes) -> bool:
    view, at = memoryview(data), len(_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(data) or zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False
        if data.startswith(b"IEND", at + 4):
            return end == len(data)
        at = end
    return False
