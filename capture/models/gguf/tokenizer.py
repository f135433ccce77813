"""The tokenizer in a GGUF file. Ids are llama.cpp's, which are the model's own."""

from __future__ import annotations

from typing import Any

from attnlens.capture.models.failure import one_line
from attnlens.capture.models.gguf.file import Header
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.splits import CUTS, GPT2, Cut
from attnlens.schemas.errors import ModelError, Setting

ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # where a file does not say, as llama.cpp has it
APPLIED = (
    *("chat_template", "ggml.model", "ggml.pre", "ggml.tokens", "ggml.scores", "ggml.token_type", "ggml.merges"),
    *(f"ggml.{role}_token_id" for role in (*ROLES.values(), "eot", "eom")),
    *("ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_space_prefix"),
)
"""Keys of the namespace `tokenizer` that are applied, here and in `model.token_ids`."""
UNKNOWN, CONTROL, USER, BYTE = 2, 3, 4, 6  # of tokenizer.ggml.token_type; 1 is a piece, 5 is unused


def read_tokenizer(header: Header) -> Any:
    """The tokenizer, with the special tokens and the chat template that the file names.

    Raises:
        ModelError: names the key that we cannot apply.
    """
    from transformers import PreTrainedTokenizerFast

    keys = Keys(header)
    kind = keys.whole("tokenizer.ggml.model")
    if kind not in MAKERS:
        known = ", ".join(MAKERS)
        raise keys.refuse(
            f"the key tokenizer.ggml.model = {kind!r} is none of {known} (--tokenizer names another tokenizer)"
        )
    pieces = keys.whole("tokenizer.ggml.tokens") or []
    types = keys.whole("tokenizer.ggml.token_type") or [1] * len(pieces)
    if not pieces or len(types) != len(pieces):
        raise keys.refuse(f"it has {len(pieces)} tokens and {len(types)} types of them")
    special = _special(keys, kind, len(pieces))
    try:
        backend, begins = MAKERS[kind](keys, pieces, types, special)
    except ModelError:
        raise
    except Exception as error:  # of the library that makes them
        raise ModelError(f"{header.path.name}: its tokenizer cannot be made: {one_line(error)}") from error
    _add_whole_tokens(backend, pieces, types)
    ends = bool(keys.whole("tokenizer.ggml.add_eos_token", False))
    begins = bool(keys.whole("tokenizer.ggml.add_bos_token", begins))
    _frame(keys, backend, pieces, special, begins=begins, ends=ends)
    names = {role: pieces[special[name]] for role, name in ROLES.items() if name in special}
    template = keys.whole("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, clean_up_tokenization_spaces=False, **names
    )


def _special(keys: Keys, kind: str, count: int) -> dict[str, int]:
    """Ids of special tokens by llama.cpp's name of their role."""
    found = {}
    for name in ROLES.values():
        value = keys.whole(f"tokenizer.ggml.{name}_token_id", SENTENCEPIECE_IDS.get(name) if kind == "llama" else None)
        if value is None:
            continue
        if not 0 <= value < count:
            raise keys.refuse(f"the key tokenizer.ggml.{name}_token_id = {value} is none of {count} tokens")
        found[name] = int(value)
    return found


def _byte_level(keys: Keys, pieces: list[str], types: list[int], special: dict[str, int]) -> tuple[Any, bool]:
    """Pieces of GPT-2's byte alphabet, merged in the order of the file; and whether text begins with a token.

    A file without `pre` was written before llama.cpp knew of different cuts; it is cut as GPT-2's was.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = keys.whole("tokenizer.ggml.pre")
    if name is not None and name not in CUTS:
        raise keys.refuse(
            f"the key tokenizer.ggml.pre = {name!r} is no cut of words that attnlens knows (",
            Setting("tokenizer"),
            " names another)",
        )
    cut = Cut((GPT2,)) if name is None else CUTS[name]
    if keys.whole("tokenizer.ggml.add_space_prefix", False):
        raise keys.refuse("the key tokenizer.ggml.add_space_prefix = True has no meaning for a byte-level tokenizer")
    pairs = _merges(keys)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=cut.whole))
    words = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in cut.expressions]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, cut.begins


def _merges(keys: Keys) -> list[tuple[str, str]]:
    """Pairs of pieces in order. A blank is between the two; the first may itself begin with one."""
    merges = keys.whole("tokenizer.ggml.merges")
    if merges is None:
        raise keys.refuse("it has no key tokenizer.ggml.merges")
    found = []
    for merge in merges:
        at = merge.find(" ", 1)
        if at < 0:
            raise keys.refuse(f"the merge {merge!r} is not two pieces")
        found.append((merge[:at], merge[at + 1 :]))
    return found


def _gemma4(keys: Keys, pieces: list[str], types: list[int], special: dict[str, int]) -> tuple[Any, bool]:
    """Pieces of text in which ▁ stands for a blank, merged in the order of the file; no merge crosses a line's end."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if keys.whole("tokenizer.ggml.pre", "gemma4") not in {"gemma4", "default"}:
        raise keys.refuse(f"the key tokenizer.ggml.pre = {keys.whole('tokenizer.ggml.pre')!r} is not 'gemma4'")
    if keys.whole("tokenizer.ggml.add_space_prefix", False):
        raise keys.refuse("the key tokenizer.ggml.add_space_prefix = True is none of Gemma 4's")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    unknown = pieces[special["unknown"]] if "unknown" in special else None
    model = models.BPE(vocabulary, _merges(keys), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend, True


def _sentencepiece(keys: Keys, pieces: list[str], types: list[int], special: dict[str, int]) -> tuple[Any, bool]:
    """SentencePiece's byte pairs, merged by their scores, bytes for what has no piece; text begins with a token.

    ▁ stands for a blank. One is put before the text, and after a special token, unless the file says otherwise.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    if keys.whole("tokenizer.ggml.pre", "default") not in {"default", "llama", "llama-spm"}:
        raise keys.refuse(f"the key tokenizer.ggml.pre = {keys.whole('tokenizer.ggml.pre')!r} is not 'default'")
    scores = keys.whole("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(pieces):
        raise keys.refuse("it has no key tokenizer.ggml.scores with a score for each token")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    mergeable = {piece for piece, kind in zip(pieces, types, strict=True) if kind not in {UNKNOWN, CONTROL, BYTE}}
    ranked = sorted(mergeable, key=lambda piece: (-scores[vocabulary[piece]], vocabulary[piece]))
    merges = [
        (piece[:at], piece[at:])
        for piece in ranked
        for at in range(1, len(piece))
        if piece[:at] in mergeable and piece[at:] in mergeable
    ]
    unknown = pieces[special["unknown"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(keys.whole("tokenizer.ggml.add_space_prefix", True))
    blank: Any = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank]) if prefix else blank
    undone = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*undone, decoders.Strip(" ", 1, 0)] if prefix else undone)
    return backend, True


MAKERS = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _gemma4}
"""By the value of tokenizer.ggml.model."""


def _add_whole_tokens(backend: Any, pieces: list[str], types: list[int]) -> None:
    """Tokens that text is never cut through: control tokens are special, user-defined ones are not."""
    from tokenizers import AddedToken

    backend.add_special_tokens(
        [
            AddedToken(piece, normalized=False, special=True)
            for piece, kind in zip(pieces, types, strict=True)
            if kind == CONTROL
        ]
    )
    backend.add_tokens(
        [
            AddedToken(piece, normalized=False)
            for piece, kind in zip(pieces, types, strict=True)
            if kind == USER and piece
        ]
    )


def _frame(keys: Keys, backend: Any, pieces: list[str], special: dict[str, int], *, begins: bool, ends: bool) -> None:
    """Tokens around each text."""
    from tokenizers.processors import TemplateProcessing

    wanted = {"bos": begins, "eos": ends}
    for name, asked in wanted.items():
        if asked and name not in special:
            raise keys.refuse(
                f"text gets a token of the kind {name}, but there is no key tokenizer.ggml.{name}_token_id"
            )
    first, last = (pieces[special[name]] if asked else None for name, asked in wanted.items())
    if first is None and last is None:
        return
    single = [token for token in (first, "$A", last) if token is not None]
    pair = [token for token in (first, "$A", last, first and f"{first}:1", "$B:1", last and f"{last}:1") if token]
    tokens = [(pieces[special[name]], special[name]) for name, asked in wanted.items() if asked]
    backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
