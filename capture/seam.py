"""A given completion, encoded with its prompt in view, so that the text that was given is the text that is fed."""

from __future__ import annotations

import string
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from attnlens.capture.messages import require_unicode
from attnlens.capture.prompt import Prompt, encode, encode_whole
from attnlens.capture.vocabulary import piece_reader
from attnlens.schemas.errors import InputError, Setting

Seam = Literal["clean", "prompt", "whole"]

ANCHORS = ("", "\n", ".", "0", *string.ascii_lowercase, *string.ascii_uppercase, " ", "\t", "-", "_", "(", "=")
"""Texts that a completion is encoded behind, to see its tokens in the middle of a text. The first that fits counts."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A prompt, the ids that it goes on with, and how they were joined.

    `clean`: the ids of the prompt begin those of the whole text. `prompt`: the prompt kept its tokens. `whole`: both
    are the whole text's tokens, and the prompt ends behind the token that spans the seam.
    """

    prompt: Prompt
    given: tuple[int, ...]
    seam: Seam


def join(tokenizer: Any, prompt: Prompt, completion: str, seam: str) -> Joined:
    """The ids of `completion` after `prompt`. Special tokens written out in it (an end of turn, say) count as such.

    Args:
        tokenizer: of the model.
        prompt: one that was given as ids keeps them, whatever `seam` says.
        completion: a text.
        seam: `prompt` or `whole`, for texts whose tokens are joined across the seam.

    Raises:
        InputError: empty, no Unicode, or no tokens continue the prompt's so that the text comes out.
    """
    if not completion:
        raise InputError("the completion is empty")
    require_unicode(completion, "the completion")
    if not encode(tokenizer, completion):
        raise InputError("the completion has no tokens: the tokenizer drops all of its characters")
    whole = encode_whole(tokenizer, prompt, completion)
    if whole[: len(prompt.ids)] == prompt.ids and len(whole) > len(prompt.ids):
        return Joined(prompt=prompt, given=tuple(whole[len(prompt.ids) :]), seam="clean")
    if seam == "whole" and not prompt.fed:
        return _spanned(tokenizer, prompt, completion, whole)
    return Joined(prompt=prompt, given=_continued(tokenizer, prompt, completion, whole), seam="prompt")


def _continued(tokenizer: Any, prompt: Prompt, completion: str, whole: Sequence[int]) -> tuple[int, ...]:
    """Ids of the completion that no word begins with, unless its text does.

    SentencePiece and its like put a space before every text. Behind an anchor whose tokens stay as they are they do
    not. What comes out is only taken if it spells the whole text.
    """
    spelled, by_piece = _speller(tokenizer)
    expected, own = spelled(whole), completion.encode()
    begun = spelled(prompt.ids)
    exact = by_piece and (prompt.fed or begun.endswith(prompt.text.encode()))
    wanted = (expected,) if by_piece else (expected, begun + own)
    for anchor in ANCHORS:
        before, both = encode(tokenizer, anchor) if anchor else [], encode(tokenizer, anchor + completion)
        rest = both[len(before) :]
        if not rest or both[: len(before)] != before:
            continue
        # Its own text alone, where the whole comes out otherwise: ids that end within a character, spaces that a
        # special token takes away. The whole, where texts are lower-cased and the like.
        if (exact and spelled(rest) == own) or spelled([*prompt.ids, *rest]) in wanted:
            return tuple(rest)
    raise InputError(
        f"the completion {_shown(completion)} cannot continue the prompt's tokens: the tokenizer has none for it that "
        "spell the same text; cut prompt and completion at a space",
        *(() if prompt.fed else (", or give ", Setting("seam='whole'", "--seam whole"))),
    )


def _spanned(tokenizer: Any, prompt: Prompt, completion: str, whole: Sequence[int]) -> Joined:
    """The tokens of the whole text, cut behind the one that spans the seam."""
    spelled, _ = _speller(tokenizer)
    target, text = spelled(prompt.ids), spelled(whole)
    if not text.startswith(target):
        target = target.rstrip()  # a tokenizer that ends its words with a space
    stop = 1 + bisect_left(range(1, len(whole)), len(target), key=lambda n: len(spelled(whole[:n])))
    head = spelled(whole[:stop])
    if not text.startswith(target) or not text.startswith(head):
        raise InputError(
            f"the tokens of prompt and completion together do not begin with the prompt's text ({_shown(completion)} "
            "changes it); cut prompt and completion at a space"
        )
    if stop == len(whole):
        raise InputError(
            f"seam whole: the completion {_shown(completion)} is part of the prompt's last token, nothing is left of "
            "it; give ",
            Setting("seam='prompt'", "--seam prompt"),
            ", or cut them elsewhere",
        )
    over = completion.encode()[: len(head) - len(target)].decode("utf-8", "replace")
    return Joined(
        prompt=replace(prompt, text=prompt.text + over, ids=list(whole[:stop])),
        given=tuple(whole[stop:]),
        seam="whole",
    )


def _speller(tokenizer: Any) -> tuple[Callable[[Sequence[int]], bytes], bool]:
    """How ids become the bytes of a text, and whether piece by piece: a decoder may strip spaces at the ends of a text,
    or put some between two tokens.
    """
    read = piece_reader(tokenizer)
    if read is None:
        return lambda ids: str(tokenizer.decode(list(ids), **PLAIN)).encode("utf-8", "replace"), False
    added = {int(token): str(text) for token, text in getattr(tokenizer, "added_tokens_decoder", {}).items()}

    def spelled(ids: Sequence[int]) -> bytes:
        parts: list[bytes] = []
        for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            part = added.get(token) or read(str(piece))
            parts.append(part.encode("utf-8", "replace") if isinstance(part, str) else part)
        return b"".join(parts)

    return spelled, True


PLAIN = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


def _shown(text: str) -> str:
    return repr(text if len(text) <= 30 else f"{text[:29]}…")
