"""Glyphs as outlines, for formats that carry their own letters.

Fonts are asked in the order in which the pixels ask them; a character that none of them has is spelled out.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matplotlib import ft2font

from attnlens.render.painter.fontfiles import bundled, extras
from attnlens.render.text.emoji import JOINERS, clusters

EM = 1000
"""Units of an em in outlines and advances."""

_FLAGS: Any = getattr(ft2font, "LoadFlags", None)
_UNHINTED = _FLAGS.NO_HINTING if _FLAGS else 2
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+")


@dataclass(frozen=True, slots=True)
class Glyph:
    """A character's outline as PDF path operators, its advance, and the box around it, in 1/1000 em."""

    character: str
    outline: bytes
    advance: int
    box: tuple[int, int, int, int]


@lru_cache(maxsize=1 << 14)
def glyph(character: str, name: str) -> Glyph | None:
    """The glyph of a character in a bundled font or in an extra one; None if no font here has it.

    An emoji of several characters has one where a font draws it as one.
    """
    if len(character) > 1:
        return _joined(character, name)
    code = ord(character)
    for file, index in ((bundled(name), 0), *extras()):
        font = _outlines(file, index)
        if font.get_char_index(code):
            advance = round(font.load_char(code, flags=_UNHINTED).linearHoriAdvance / 65536)
            vertices, codes = font.get_path()
            return _glyph(character, advance, vertices.tolist(), codes.tolist())
    return None


def _joined(sequence: str, name: str) -> Glyph | None:
    """The one glyph of an emoji of several characters, whether or not the font asks for the sign of emoji style."""
    seen = [ord(character) for character in sequence if character not in JOINERS]
    for file, index in ((bundled(name), 0), *extras()):
        font = _outlines(file, index)
        if not all(font.get_char_index(code) for code in seen):
            continue
        for text in dict.fromkeys([sequence, sequence.replace("\ufe0f", "")]):
            font.clear()
            font.set_text(text, 0.0, flags=_UNHINTED)
            vertices, codes = font.get_path()
            if font.get_num_glyphs() == 1 and len(codes):
                return _glyph(sequence, round(font.get_width_height()[0] / 64), vertices.tolist(), codes.tolist())
    return None


def spell(text: str, name: str) -> str:
    """`text` as it is drawn from left to right, what no font has as code points: `U+4E2D`."""
    if text.isascii() and text.isprintable():
        return text
    shown = _RIGHT_TO_LEFT.sub(lambda found: found[0][::-1], text)
    parts: list[str] = []
    for part in clusters(shown):
        if len(part) > 1 and glyph(part, name):
            parts.append(part)
            continue
        for character in part:
            visible = unicodedata.category(character) not in ("Cc", "Cf", "Cs") and character not in JOINERS
            parts.append(character if visible and glyph(character, name) else f"U+{ord(character):04X} ")
    return "".join(parts).rstrip(" ")


def advance(character: str, name: str) -> float:
    """Width of a character in em, or of an emoji of several."""
    found = glyph(character, name)
    return found.advance / EM if found else 0.0


@lru_cache(maxsize=64)
def _outlines(file: str, index: int) -> Any:
    font = ft2font.FT2Font(file, face_index=index) if index else ft2font.FT2Font(file)
    font.set_size(EM, 72)
    return font


def _glyph(character: str, advance: int, vertices: list[list[float]], codes: list[int]) -> Glyph:
    parts: list[str] = []
    at, here = 0, (0.0, 0.0)
    while at < len(codes):
        points = [(x, y) for x, y in vertices[at : at + max(1, codes[at] - 1)]] if codes[at] <= 4 else []
        match codes[at]:
            case 1:
                parts.append(f"{_pairs(points)} m")
            case 2:
                parts.append(f"{_pairs(points)} l")
            case 3:  # a quadratic curve as a cubic one
                (ax, ay), (bx, by) = points
                (hx, hy) = here
                middle = [((hx + 2 * ax) / 3, (hy + 2 * ay) / 3), ((bx + 2 * ax) / 3, (by + 2 * ay) / 3)]
                parts.append(f"{_pairs([*middle, (bx, by)])} c")
            case 4:
                parts.append(f"{_pairs(points)} c")
            case _:
                parts.append("h")
        here = points[-1] if points else here
        at += max(1, len(points))
    xs = [x for (x, _), code in zip(vertices, codes, strict=True) if code <= 4] or [0.0]
    ys = [y for (_, y), code in zip(vertices, codes, strict=True) if code <= 4] or [0.0]
    box = (int(min(xs)) - 1, int(min(ys)) - 1, int(max(xs)) + 1, int(max(ys)) + 1)
    return Glyph(character, " ".join(parts).encode() + (b" f" if parts else b""), advance, box)


def _pairs(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.0f} {y:.0f}" for x, y in points)
