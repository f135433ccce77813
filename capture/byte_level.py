"""The map of byte-level tokenizers between bytes and printable characters (GPT-2's, used by all of them since)."""

from __future__ import annotations


def _pairs() -> dict[int, str]:
    """Bytes that print stand for themselves; the others get the characters from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_CHARACTER = _pairs()
_BYTE = {ord(character): byte for byte, character in _CHARACTER.items()}


def to_characters(raw: bytes) -> str:
    """One printable character a byte."""
    return raw.decode("latin-1").translate(_CHARACTER)


def to_bytes(characters: str) -> bytes | None:
    """The bytes again; None if a character stands for none."""
    try:
        return bytes([_BYTE[ord(character)] for character in characters])
    except KeyError:
        return None
