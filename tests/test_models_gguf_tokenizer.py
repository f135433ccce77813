"""The tokenizer in a GGUF file gives the ids of the tokenizer that the file was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from attnlens.capture.models.gguf import read_header
from attnlens.capture.models.gguf.splits import CUTS
from attnlens.capture.models.gguf.tokenizer import read_tokenizer
from attnlens.schemas.errors import ModelError
from tiny import CORPUS

gguf = pytest.importorskip("gguf")
TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "  two  blanks\n\n\tand a tab \n",
    "12345 67 8",
    "I'LL don't HelloWorld ABCdef",
    "<s>again</s> and<sep> on",
    "12,345.60 $5+3=8 ~| `x`",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def write(path: Path, kind: str, pieces: list[str], types: list[int], **keys: Any) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in keys.items():
        if name == "merges":
            writer.add_token_merges(value)
        elif name == "scores":
            writer.add_token_scores(value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        else:
            writer.add_string(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# SentencePiece, against the package of that name


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(line for text in CORPUS for line in text.split("\n")))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "model"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        user_defined_symbols=["<sep>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))


def sentencepiece_file(path: Path, processor: Any, **keys: Any) -> Any:
    """As llama.cpp's converter writes it."""
    count = processor.vocab_size()
    kinds = ((processor.is_unknown, 2), (processor.is_control, 3), (processor.is_unused, 5), (processor.is_byte, 6))
    types = [next((kind for asked, kind in kinds if asked(index)), 1) for index in range(count)]
    types[processor.piece_to_id("<sep>")] = 4
    pieces = [processor.id_to_piece(index) for index in range(count)]
    scores = [processor.get_score(index) for index in range(count)]
    return read_tokenizer(read_header(write(path, "llama", pieces, types, scores=scores, pre="default", **keys)))


@pytest.mark.parametrize("text", [text for text in TEXTS if "<s>" not in text])
def test_pieces_are_sentencepieces(tmp_path: Path, processor: Any, text: str) -> None:
    tokenizer = sentencepiece_file(tmp_path / "t.gguf", processor)
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, *processor.encode(text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_no_blank_is_put_before_where_the_file_says_so(tmp_path: Path, processor: Any) -> None:
    plain = sentencepiece_file(tmp_path / "t.gguf", processor, add_space_prefix=False)
    with_blank = sentencepiece_file(tmp_path / "u.gguf", processor)
    assert plain(" Alice and")["input_ids"] == with_blank("Alice and")["input_ids"]
    assert plain("Alice and")["input_ids"] != with_blank("Alice and")["input_ids"]
    assert plain.decode(plain("Alice and")["input_ids"], skip_special_tokens=True) == "Alice and"


@pytest.mark.parametrize(("begins", "ends"), [(True, True), (True, False), (False, True), (False, False)])
def test_tokens_around_a_text(tmp_path: Path, processor: Any, begins: bool, ends: bool) -> None:
    tokenizer = sentencepiece_file(tmp_path / "t.gguf", processor, add_bos_token=begins, add_eos_token=ends)
    assert tokenizer("Alice")["input_ids"] == [1] * begins + processor.encode("Alice") + [2] * ends
    assert tokenizer("Alice", add_special_tokens=False)["input_ids"] == processor.encode("Alice")


def test_special_tokens_in_a_text_are_one_token_each(tmp_path: Path, processor: Any) -> None:
    tokenizer = sentencepiece_file(tmp_path / "t.gguf", processor)
    ids = tokenizer("<s>Alice</s>")["input_ids"]
    assert ids == [1, 1, *processor.encode("Alice"), 2]


# Byte-level, against a tokenizer whose cut is the library's own


GPT2_CUT = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS_CUT = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2_CUT])
LLAMA3_CUT = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            behavior="isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


def byte_level(cut: Any) -> Tokenizer:
    """Pieces learned with no cut at all, so that each cut gives other ids."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([*CORPUS, "12345 67 8 12345.60", "I'LL don't I'LL don't HelloWorld"] * 2, trainer)
    trained.pre_tokenizer = cut
    return trained


def byte_level_file(path: Path, original: Tokenizer, **keys: Any) -> Any:
    vocabulary = original.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [3 if piece in SPECIAL else 1 for piece in pieces]
    merges = [" ".join(merge) for merge in json.loads(original.to_str())["model"]["merges"]]
    return read_tokenizer(read_header(write(path, "gpt2", pieces, types, merges=merges, **keys)))


@pytest.mark.parametrize(
    ("pre", "cut"), [("gpt-2", GPT2_CUT), ("smollm", DIGITS_CUT), ("starcoder", DIGITS_CUT), ("dbrx", LLAMA3_CUT)]
)
def test_text_is_cut_as_the_file_says(tmp_path: Path, pre: str, cut: Any) -> None:
    original = byte_level(cut)
    tokenizer = byte_level_file(tmp_path / "t.gguf", original, pre=pre)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == original.encode(text).ids, text
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    other = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    assert any(other.encode(text).ids != original.encode(text).ids for text in TEXTS)  # the cut matters here


def test_whole_words_are_not_merged_anew_where_the_model_does_not(tmp_path: Path) -> None:
    original = Tokenizer(
        models.BPE({"a": 3, "b": 4, "c": 5, "bc": 6, "abc": 7, **{s: i for i, s in enumerate(SPECIAL)}}, [])
    )
    keys = {"merges": ["b c"]}
    types = [3, 3, 3, 1, 1, 1, 1, 1]
    pieces = [*SPECIAL, "a", "b", "c", "bc", "abc"]
    assert original.get_vocab_size() == len(pieces)
    for pre, expected in (("llama-bpe", [1, 7]), ("dbrx", [3, 6])):
        path = write(tmp_path / f"{pre}.gguf", "gpt2", pieces, types, pre=pre, **keys)
        assert read_tokenizer(read_header(path))("abc")["input_ids"] == expected


@pytest.mark.parametrize("pre", CUTS)
def test_every_cut_keeps_every_letter(tmp_path: Path, pre: str) -> None:
    tokenizer = byte_level_file(tmp_path / "t.gguf", byte_level(GPT2_CUT), pre=pre)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_ids_that_are_no_token(tmp_path: Path) -> None:
    path = write(tmp_path / "t.gguf", "gpt2", ["a", "b"], [1, 1], merges=["a b"])
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.eos_token_id = 2 is none of 2 tokens"):
        read_tokenizer(read_header(path))
