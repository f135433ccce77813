r"""Legible text for any token: what cannot be seen is spelled out, what can be seen stays as it is.

| in the token | in the picture |
|---|---|
| spaces before, after or between other characters | `·` before, after, and for each of two to four in a row |
| five spaces and more | `<space×16>` |
| nothing but spaces (`·` would pass for a full stop) | `<space>` `<space×2>` |
| newline, tab, return | `\n` `\t` `\r` |
| other ASCII control characters, and bytes that are no character on their own | `<00>` `<E2>` |
| any other character without ink: zero width, direction, fillers, lone surrogates | `<U+200B>` |
| an emoji of several characters (a family with its joiners, a flag, a keycap) | itself |
| a combining mark with nothing to sit on | `◌` and the mark |
| no text at all | `<empty>` |
"""

from __future__ import annotations

import re
import unicodedata

from attnlens.render.text.emoji import clusters

LIMIT = 96
"""Characters of a token that are looked at: no cell holds more."""

CUT = "…"

_NAMED = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}
_SPACES = re.compile(r"^ +| +$| {2,}")
_FILLERS = frozenset({0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0})
_INVISIBLE = _FILLERS.union(range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
"""Fillers, variation selectors and the empty braille cell: letters, marks and symbols that leave no ink."""

_WITHOUT_INK = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"})
_MARKS_IN_A_ROW = 2


def legible(text: str) -> str:
    """One line of visible characters for a token's text (see the table above). Never fails."""
    return _line(text, escaped=False)


def legible_bytes(raw: bytes, text: str) -> str:
    """The same for a token whose exact bytes are known; `text` stands in where there are none."""
    if not raw:
        return legible(text)
    # surrogateescape turns byte 0xE2 into U+DCE2, which valid UTF-8 cannot hold.
    return _line(raw[: 4 * LIMIT + 4].decode("utf-8", "surrogateescape"), escaped=True)


def _line(text: str, *, escaped: bool) -> str:
    if not text:
        return "<empty>"
    if not text.strip(" "):
        return "<space>" if len(text) == 1 else f"<space×{len(text)}>"
    cut = len(text) > LIMIT
    parts: list[str] = []
    marks = _MARKS_IN_A_ROW
    for character in clusters(text[:LIMIT]):
        if len(character) > 1:
            parts.append(character)
            marks = _MARKS_IN_A_ROW
            continue
        if unicodedata.category(character) in ("Mn", "Me") and ord(character) not in _INVISIBLE:
            if not parts:
                parts.append("◌")
                marks = 0
            marks += 1
            parts.append(character if marks <= _MARKS_IN_A_ROW else f"<U+{ord(character):04X}>")
            continue
        shown = _visible(character, escaped=escaped)
        # After a spelled-out character a mark would sit on the bracket: spell it out as well.
        marks = 0 if shown == character != " " else _MARKS_IN_A_ROW
        parts.append(shown)
    return _SPACES.sub(_dots, "".join(parts)) + (CUT if cut else "")


def _visible(character: str, *, escaped: bool) -> str:
    code = ord(character)
    if 0x20 <= code < 0x7F:
        return character
    if character in _NAMED:
        return _NAMED[character]
    if code < 0x20 or code == 0x7F:
        return f"<{code:02X}>"
    if escaped and 0xDC80 <= code <= 0xDCFF:
        return f"<{code - 0xDC00:02X}>"
    if unicodedata.category(character) in _WITHOUT_INK or code in _INVISIBLE:
        return f"<U+{code:04X}>"
    return character


def _dots(found: re.Match[str]) -> str:
    count = len(found[0])
    return "·" * count if count <= 4 else f"<space×{count}>"
