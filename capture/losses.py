"""What a tokenizer has no tokens for: the text that is fed is then another than the one that was given."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from attnlens.capture.prompt import encode

SHOWN = 8
"""So many characters are named."""
UNSEEN = ("Z", "C", "Mn")
"""Categories of characters that many tokenizers take away by design: spaces, controls, accents that stand alone."""


def losses(tokenizer: Any, text: str, ids: Sequence[int]) -> tuple[str, ...]:
    """Remarks for the store: tokens that stand for anything unknown, and characters that have become no token.

    Lower case, accents and spaces are the tokenizer's own business, and no loss.

    Args:
        tokenizer: of the model.
        text: all that was given.
        ids: all that is fed.
    """
    notes = []
    name, unknown = getattr(tokenizer, "unk_token", None), getattr(tokenizer, "unk_token_id", None)
    if name is not None and unknown is not None and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        count = sum(token == unknown for token in ids) - text.count(name)
        if count > 0:
            notes.append(f"{count} of {len(ids)} given tokens are {name}: the tokenizer does not know what stood there")
    dropped = _dropped(tokenizer, text)
    if dropped:
        some = ", ".join(dropped[:SHOWN]) + (", …" if len(dropped) > SHOWN else "")
        notes.append(f"the tokenizer has no token for {len(dropped)} of the characters that were given: {some}")
    return tuple(notes)


def _dropped(tokenizer: Any, text: str) -> list[str]:
    """Characters, each once, that leave no trace. Only the tokenizers library tells where tokens come from."""
    if not getattr(tokenizer, "is_fast", False):
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    covered = bytearray(len(text))
    for start, stop in encoded["offset_mapping"]:
        covered[start:stop] = b"\1" * (stop - start)
    if all(seen or _unseen(text[at]) for at, seen in enumerate(covered)):
        return []
    # Behind a dropped character the places of a word's tokens are wrong, so each character is tried.
    return [one for one in dict.fromkeys(text) if not _unseen(one) and _read(tokenizer, one) == _read(tokenizer, "")]


def _unseen(character: str) -> bool:
    return unicodedata.category(character).startswith(UNSEEN)


def _read(tokenizer: Any, text: str) -> str:
    """A text between two letters, as the tokenizer reads it."""
    return str(tokenizer.decode(encode(tokenizer, f"a{text}a")))
