"""Emoji that are written with several characters and read as one: families, flags, skin tones, keycaps.

After UTS #51 (Unicode Emoji), whose sequences are: a pictograph with a modifier or the sign for emoji style; several of
these with zero-width joiners between them; two regional indicators; a digit in a keycap; a flag with tags.
"""

from __future__ import annotations

import re

_PICTURE = "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff]"  # noqa: E501
_STYLE = "(?:\ufe0f|[\U0001f3fb-\U0001f3ff])"
_TAGS = "[\U000e0020-\U000e007e]+\U000e007f"

SEQUENCE = re.compile(
    f"{_PICTURE}{_STYLE}?(?:\u200d{_PICTURE}{_STYLE}?)+"
    f"|{_PICTURE}(?:{_TAGS}|{_STYLE})"
    "|[\U0001f1e6-\U0001f1ff]{2}"
    "|[0-9#*]\ufe0f?\u20e3"
)
"""An emoji of several characters."""


JOINERS = frozenset("\u200d\ufe0f")
"""What holds such an emoji together, and has no ink of its own."""


def clusters(text: str) -> list[str]:
    """`text` in characters, emoji sequences whole."""
    if not text or max(text) < "\u20e3":
        return list(text)
    found: list[str] = []
    at = 0
    for sequence in SEQUENCE.finditer(text):
        found += text[at : sequence.start()]
        found.append(sequence[0])
        at = sequence.end()
    return found + list(text[at:])
