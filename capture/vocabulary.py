"""What every token of a vocabulary is: its bytes, a text to show, and whether it is a special token."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from attnlens.capture.byte_level import to_bytes
from attnlens.store.spelling import spelled

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Step = Callable[[str], "str | bytes"]


class Vocabulary:
    """The tokens 0 … size-1 of a model. Ids beyond the tokenizer (padded embeddings) are unused.

    Bytes and texts are those of a token in the middle of a text: joined, the bytes of a text's tokens are the text,
    save for a space that some tokenizers put before its first word.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self._added = {
            int(token): (str(added), bool(getattr(added, "special", False)))
            for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items()
        }
        self._specials = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._pieces = _pieces(tokenizer, size)
        self._to_bytes = piece_reader(tokenizer)
        self._raw: dict[int, builtins.bytes] = {}
        self._texts: dict[int, str] = {}

    def __len__(self) -> int:
        return self.size

    def bytes(self, token: int) -> builtins.bytes:
        """The exact bytes of a token; empty for an unused id.

        Raises:
            IndexError: no id of this vocabulary.
        """
        found = self._raw.get(token)
        if found is None:
            found = self._raw[token] = self._read(token)
        return found

    def text(self, token: int) -> str:
        """A text to show: the bytes as UTF-8, `<E2>` for bytes that are no character, `<unused 151700>` for unused ids.

        Raises:
            IndexError: no id of this vocabulary.
        """
        found = self._texts.get(token)
        if found is None:
            raw = self.bytes(token)
            found = spelled(raw) if self.used(token) else f"<unused {token}>"
            self._texts[token] = found
        return found

    def texts(self, tokens: Iterable[int]) -> list[str]:
        """`text` of each."""
        return [self.text(token) for token in tokens]

    def special(self, token: int) -> bool:
        """Whether the token stands for something other than its text: begin, end, role, padding …"""
        added = self._added.get(token)
        return token in self._specials or (added is not None and added[1])

    def used(self, token: int) -> bool:
        """Whether the tokenizer knows the id."""
        return token in self._added or token in self._pieces

    def _read(self, token: int) -> builtins.bytes:
        if not 0 <= token < self.size:
            raise IndexError(f"id {token} is outside the vocabulary, 0 … {self.size - 1}")
        if token in self._added:
            return self._added[token][0].encode("utf-8", errors="replace")
        read: str | builtins.bytes | None = self._pieces.get(token)
        if read is None:
            return b""
        if token not in self._specials:
            read = self._to_bytes(str(read)) if self._to_bytes else self._decode(token)
        return read if isinstance(read, builtins.bytes) else read.encode("utf-8", errors="replace")

    def _decode(self, token: int) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode([token], **options))


def _pieces(tokenizer: Any, size: int) -> dict[int, str]:
    """Every token as the tokenizer spells it."""
    return {token: piece for piece, token in tokenizer.get_vocab().items() if 0 <= token < size}


def piece_reader(tokenizer: Any) -> Step | None:
    """How a piece becomes bytes, read from the tokenizer's own decoder; None: only the tokenizer itself can tell."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _sentencepiece if hasattr(tokenizer, "sp_model") else None
    if backend.decoder is None:
        return str
    # Only the decoder is serialised: the whole tokenizer would take a second.
    description = json.loads(backend.decoder.__getstate__())
    steps = [_step(part) for part in description.get("decoders", [description])]
    if any(step is None for step in steps):
        return None
    return _chain([step for step in steps if step is not None])


def _chain(steps: list[Step]) -> Step:
    def read(piece: str) -> str | bytes:
        for step in steps:
            result = step(piece)
            if isinstance(result, bytes):
                return result
            piece = result
        return piece

    return read


def _step(part: dict[str, Any]) -> Step | None:
    """One step of a decoder for one piece in the middle of a text."""
    kind = part.get("type")
    if kind == "ByteLevel":
        return _byte_level
    if kind == "ByteFallback":
        return _byte_fallback
    if kind == "Metaspace":
        mark = str(part.get("replacement", "▁"))
        return lambda piece: piece.replace(mark, " ")
    if kind == "Replace" and "String" in part.get("pattern", {}):
        old, new = str(part["pattern"]["String"]), str(part["content"])
        return lambda piece: piece.replace(old, new)
    if kind == "WordPiece":
        prefix = str(part.get("prefix", "##"))
        return lambda piece: piece[len(prefix) :] if piece.startswith(prefix) else " " + piece
    if kind == "BPEDecoder":
        suffix = str(part.get("suffix", "</w>"))
        return lambda piece: piece[: -len(suffix)] + " " if piece.endswith(suffix) else piece
    if kind in ("Fuse", "Strip"):  # of the text as a whole
        return str
    return None


def _byte_level(piece: str) -> str | bytes:
    raw = to_bytes(piece)
    return piece if raw is None else raw


def _byte_fallback(piece: str) -> str | bytes:
    match = BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _sentencepiece(piece: str) -> str | bytes:
    read = _byte_fallback(piece)
    return read if isinstance(read, bytes) else read.replace("▁", " ")
