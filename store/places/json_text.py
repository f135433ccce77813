"""JSON documents of strangers: parsed only if what comes out of them fits into memory.

A document of a few hundred MiB is honest where it is text: the prompts of thousands of captures. Then it has few
values. A bomb has many: `[[],[],…` takes twenty times its bytes as Python objects. So values are counted before they
are made.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

DOCUMENT_BYTES = 1 << 29
"""The largest JSON document that is read."""
PLAIN_BYTES = 1 << 25
"""Above this it must be ASCII, as writers of stores write it: other text may take four times its bytes."""
DOCUMENT_VALUES = 1 << 22
"""The most values in one: the root of 100 000 captures of a batch, its index included, has 1.6 million."""
_TEXT = re.compile(rb'"(?:[^"\\]++|\\(?:.|\Z))*+(?:"|\Z)', re.DOTALL)
"""A string. One without an end reaches to the end of the document, so that looking takes time in line with its size."""


def check_bytes(size: int) -> None:
    """Refuse a document by its size, before it is read.

    Raises:
        ValueError: it is too large.
    """
    if size > DOCUMENT_BYTES:
        raise ValueError(f"larger than {DOCUMENT_BYTES} bytes")


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        ValueError: it is none, or would take more memory than any document of a store.
    """
    check_bytes(len(data))
    if len(data) > PLAIN_BYTES and not data.isascii():
        raise ValueError(f"larger than {PLAIN_BYTES} bytes and not in ASCII")
    if _separators(data) > DOCUMENT_VALUES and _separators(_TEXT.sub(b"", data)) > DOCUMENT_VALUES:
        raise ValueError(f"holds more than {DOCUMENT_VALUES} values")
    try:
        found = json.loads(data, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("its lists lie too deep in one another") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _finite(text: str) -> float:
    """A number that is none in JSON (NaN, Infinity), or larger than any that can be written again, is refused."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"holds {text[:20]}, which is no number of JSON")
    return found


def _separators(data: bytes) -> int:
    """At least as many as there are values, but for those that stand alone."""
    return sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
