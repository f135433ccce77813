"""How bytes of a token are written as its display text, the same for every writer."""

from __future__ import annotations


def spelled(raw: bytes) -> str:
    """Bytes as text; those that are no UTF-8 (parts of a character) as `<E2>`, so that they can be read.

    `token_bytes` of the store keeps the difference between such a byte and a text that looks like one.
    """
    text = raw.decode("utf-8", errors="surrogateescape")
    return "".join(f"<{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
