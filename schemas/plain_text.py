"""Text of strangers, made safe to show: what a terminal would obey, and what breaks a line, is escaped."""

from __future__ import annotations

_KEPT = frozenset("\u00a0\u3000\u200c\u200d")  # spaces and joiners that scripts and emoji need


def printable(text: str) -> str:
    """`text` with all that a terminal would obey rather than show (controls, bidi marks, lone surrogates) escaped."""
    return "".join(c if c.isprintable() or c in _KEPT else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """`text` as one printable line, whitespace runs made single spaces."""
    return printable(" ".join(text.split()))


def shortened(text: str, limit: int) -> str:
    """`text` as one printable line of at most `limit` characters, `…` at its end where some are left out."""
    line = one_line(text[: 4 * limit])  # a stranger's text may be megabytes
    return line if len(line) <= limit and len(text) <= 4 * limit else f"{line[: limit - 1]}…"
