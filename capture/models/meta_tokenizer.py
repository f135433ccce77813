"""tokenizer.model beside Meta's weights: a tiktoken vocabulary (Llama 3) or a sentencepiece model (Llama 2)."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from attnlens.capture.extra import require_package
from attnlens.capture.models.failure import one_line
from attnlens.schemas.errors import ModelError

# As in Meta's Llama 3 code: the pattern, the names, and the order of the 256 special tokens after the vocabulary.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>",
)  # fmt: skip
SPECIAL = (*NAMED, *(f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(NAMED))))
STOP = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")

# Meta's ChatFormat: every message stripped, the system message as it is given, nothing added.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
PROBES = ("Alice and Bob are siblings.", " two  spaces\n\tand é 日本 🙂", "3.14 == 1e3")


def is_tiktoken(path: Path) -> bool:
    """Whether the file begins like a tiktoken vocabulary: base64, a rank."""
    with path.open("rb") as file:
        return TIKTOKEN_LINE.match(file.read(1024)) is not None


def check_tokenizer(path: Path) -> None:
    """Return if the packages are here that reading this file needs.

    Raises:
        MissingExtraError: sentencepiece is not installed.
    """
    if not is_tiktoken(path):
        require_package("sentencepiece", "the tokenizer of Llama 2")


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Bytes of every token, and its id.

    Raises:
        ModelError: names the line that is not base64 and a rank.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ModelError(f"{path}, line {number}: expected base64 and a rank, found {line[:40]!r}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(f"{path} is damaged or cut short: its ranks are not 0 … {len(ranks) - 1}")
    if any(bytes([value]) not in ranks for value in range(256)):
        raise ModelError(f"{path} is damaged: not every single byte is a token")
    return ranks


def tiktoken_tokenizer(path: Path) -> Any:
    """The same ids as tiktoken gives, from the tokenizers library, with Meta's special tokens and chat format."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from attnlens.capture.byte_level import to_characters

    ranks = read_tiktoken(path)
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(left, right) for left, right in splits if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges.extend((to_characters(left), to_characters(right)) for left, right in known)
    vocabulary = {to_characters(token): rank for token, rank in ranks.items()}
    backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))  # a piece that is a token is taken whole
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    begin = SPECIAL[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin,
        eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def sentencepiece_tokenizer(path: Path) -> Any:
    """Llama 2's byte-pair pieces with byte fallback. It has no chat template: params.json does not tell chat from base.

    Raises:
        ModelError: no sentencepiece model, or one that is built otherwise and would give other ids.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is neither a tiktoken vocabulary nor a sentencepiece model: {one_line(error)}"
        ) from error
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    plain = [
        p for p, i in vocabulary.items() if not (pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i))
    ]
    merges: list[tuple[str, str]] = []
    for piece in sorted(plain, key=lambda piece: (-pieces.get_score(vocabulary[piece]), vocabulary[piece])):
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        known = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        merges.extend(sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]])))
    unknown, begin, end = (pieces.id_to_piece(i) for i in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()))
    backend = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    # sentencepiece puts a space before every text, also before one that begins with a space.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, pieces.bos_id())]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    for text in PROBES:
        if tokenizer(text, add_special_tokens=False)["input_ids"] != pieces.encode(text):
            raise ModelError(
                f"{path} is not built like Llama 2's tokenizer: it would give other ids than sentencepiece"
            )
    return tokenizer
