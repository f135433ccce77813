"""`--track`: which tokens are followed through all depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlens.capture.vocabulary import Vocabulary
from attnlens.schemas.errors import InputError, Setting

SHOWN = 8
"""Pieces of a text that are listed when it is not one token."""


def tracked_ids(wanted: Sequence[str | int], tokenizer: Any, vocabulary: Vocabulary) -> list[int]:
    """Ids of the tokens wanted, each given as its exact text or as its id, in order and each once.

    Raises:
        InputError: a text is not one token, or an id is not in the vocabulary.
    """
    ids = [_of_id(item, vocabulary) if isinstance(item, int) else _of_text(item, tokenizer, vocabulary)
           for item in wanted]  # fmt: skip
    return list(dict.fromkeys(ids))


def _of_id(token: int, vocabulary: Vocabulary) -> int:
    if not 0 <= token < len(vocabulary):
        track = Setting("track", "--track-id")
        raise InputError(track, f" {token}: the vocabulary has the ids 0 … {len(vocabulary) - 1}")
    return token


def _of_text(text: str, tokenizer: Any, vocabulary: Vocabulary) -> int:
    ids = [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    if len(ids) == 1:
        return ids[0]
    pieces = ", ".join(f"{vocabulary.text(token)!r} = {token}" for token in ids[:SHOWN])
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    split = (
        f"the tokenizer makes {len(ids)} tokens of it: {pieces}{more}" if ids else "the tokenizer makes nothing of it"
    )
    hint = "; a space before a word often makes it one" if text.isalnum() else ""
    advice = ("; track one of them with ", Setting("track", "--track-id"), f" N{hint}")
    raise InputError(Setting("track"), f" {text!r} is no single token: {split}", *advice)
