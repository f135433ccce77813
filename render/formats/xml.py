"""Text made safe for XML, whatever is in it."""

from __future__ import annotations

import re

_SPELLED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they would turn the text around them
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # no characters
)
_BLANK = re.compile("[\t\n\r]+")
_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})


def spelled(text: str) -> str:
    """`text` in which characters that XML cannot hold, or that a viewer would obey rather than show, are `<U+…>`."""
    if text.isascii() and text.isprintable():
        return text
    return _SPELLED.sub(lambda found: f"<U+{ord(found[0]):04X}>", _BLANK.sub(" ", text))


def escape(text: str) -> str:
    """`text` as the content of an element or of an attribute in quotes, whatever is in it."""
    return spelled(text).translate(_MARKUP)
