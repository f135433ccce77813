"""The file around a page of PDF: letters as fonts of outlines, objects and their table. It holds no time of day."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from attnlens import __version__
from attnlens.render.formats.glyphs import EM, Glyph, glyph
from attnlens.render.text.emoji import clusters

PER_FONT = 255
"""Characters of one font: its codes are bytes, and 0 is left free."""


class Letters:
    """The characters that a page uses, in the order of their first use, and how a text is written with them."""

    def __init__(self) -> None:
        self.fonts: list[list[Glyph]] = []
        self.fitted: dict[tuple[str, float], tuple[str, float, float]] = {}
        self._codes: dict[tuple[str, str], tuple[int, int]] = {}
        self._runs: dict[tuple[str, str], list[tuple[int, bytes]]] = {}

    def show(self, text: str, x: float, y: float, size: float, name: str) -> bytes:
        """Operators that write `text` from (x, y), y downwards."""
        if (runs := self._runs.get((text, name))) is None:
            runs = self._runs[text, name] = self._split(text, name)
        parts = [f"/F{font} {size:g} Tf <".encode() + codes + b"> Tj " for font, codes in runs]
        return f"BT 1 0 0 -1 {x:.2f} {y:g} Tm ".encode() + b"".join(parts) + b"ET\n"

    def _split(self, text: str, name: str) -> list[tuple[int, bytes]]:
        """(font, codes in hexadecimal) for each run of characters of one font."""
        found: list[tuple[int, bytes]] = []
        for character in clusters(text):
            place = self._code(character, name)
            if place is None:
                continue
            font, code = place
            piece = f"{code:02x}".encode()
            if found and found[-1][0] == font:
                found[-1] = font, found[-1][1] + piece
            else:
                found.append((font, piece))
        return found

    def _code(self, character: str, name: str) -> tuple[int, int] | None:
        key = character, name
        if key not in self._codes:
            outline = glyph(character, name)
            if outline is None:
                return None
            if not self.fonts or len(self.fonts[-1]) >= PER_FONT:
                self.fonts.append([])
            self.fonts[-1].append(outline)
            self._codes[key] = len(self.fonts) - 1, len(self.fonts[-1])
        return self._codes[key]


def document(content: bytes, letters: Letters, width: int, height: int, scale: float, info: Mapping[str, str]) -> bytes:
    """A PDF of one page, width × height pixels of `scale` points, y downwards in `content`."""
    objects = [b"", b"", b"", b"", b""]  # catalogue, pages, page, content, info
    names = []
    for number, characters in enumerate(letters.fonts):
        names.append(f"/F{number} {_font(objects, characters)} 0 R")
    box = f"[0 0 {width * scale:.2f} {height * scale:.2f}]"
    turned = f"{scale:.6g} 0 0 {-scale:.6g} 0 {height * scale:.2f} cm\n".encode()
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    objects[2] = (
        f"<< /Type /Page /Parent 2 0 R /MediaBox {box} /Contents 4 0 R "
        f"/Resources << /Font << {' '.join(names)} >> >> >>"
    ).encode()
    objects[3] = _stream(turned + content, squeezed=True)
    entries = [f"/Producer (attnlens {__version__})"]
    for key, value in info.items():
        entries.append(f"/{key} <{value.encode().hex() if value.isascii() else _utf16(value, mark=True)}>")
    objects[4] = f"<< {' '.join(entries)} >>".encode()
    parts, offsets = [b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"], []
    size = len(parts[0])
    for number, body in enumerate(objects, 1):
        offsets.append(size)
        parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        size += len(parts[-1])
    parts.append(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    parts += [b"%010d 00000 n \n" % offset for offset in offsets]
    parts.append(
        b"trailer\n<< /Size %d /Root 1 0 R /Info 5 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, size)
    )
    return b"".join(parts)


def _font(objects: list[bytes], characters: list[Glyph]) -> int:
    """Add a Type 3 font of these outlines; the number of its object."""
    procedures = []
    for code, one in enumerate(characters, 1):
        left, low, right, high = one.box
        head = f"{one.advance} 0 {left} {low} {right} {high} d1 ".encode()
        procedures.append(f"/c{code} {_add(objects, _stream(head + one.outline))} 0 R")
    pairs = "".join(f"<{code:02x}> <{_utf16(one.character)}>\n" for code, one in enumerate(characters, 1))
    blocks = pairs.splitlines()
    mapped = "".join(
        f"{len(blocks[at : at + 100])} beginbfchar\n" + "\n".join(blocks[at : at + 100]) + "\nendbfchar\n"
        for at in range(0, len(blocks), 100)
    )
    unicode = _add(
        objects,
        _stream(
            (
                "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /attnlens def /CMapType 2 def\n"
                f"1 begincodespacerange <00> <ff> endcodespacerange\n{mapped}endcmap end end"
            ).encode(),
            squeezed=True,
        ),
    )
    boxes = [one.box for one in characters]
    around = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    codes = range(1, len(characters) + 1)
    return _add(
        objects,
        (
            f"<< /Type /Font /Subtype /Type3 /FontBBox [{' '.join(map(str, around))}] /FontMatrix "
            f"[{1 / EM:g} 0 0 {1 / EM:g} 0 0] /FirstChar 1 /LastChar {len(characters)} "
            f"/Widths [{' '.join(str(one.advance) for one in characters)}] /ToUnicode {unicode} 0 R "
            f"/Encoding << /Type /Encoding /Differences [1 {' '.join(f'/c{code}' for code in codes)}] >> "
            f"/CharProcs << {' '.join(procedures)} >> /Resources << >> >>"
        ).encode(),
    )


def _add(objects: list[bytes], body: bytes) -> int:
    objects.append(body)
    return len(objects)


def _stream(data: bytes, *, squeezed: bool = False) -> bytes:
    body = zlib.compress(data, 6) if squeezed else data
    how = b"/Filter /FlateDecode " if squeezed else b""
    return b"<< %s/Length %d >>\nstream\n%s\nendstream" % (how, len(body), body)


def _utf16(text: str, *, mark: bool = False) -> str:
    return ("feff" if mark else "") + text.encode("utf-16-be", "replace").hex()
