"""The bytes of a text's tokens are the text, for every kind of tokenizer."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.capture.byte_level import to_bytes, to_characters
from attnlens.capture.models.meta_tokenizer import tiktoken_tokenizer
from attnlens.capture.vocabulary import Vocabulary
from tiny import byte_fallback_tokenizer, byte_level_tokenizer, wordpiece_tokenizer, write_tiktoken

LLAMA3 = Path(__file__).resolve().parents[2] / "shared" / "oracles" / "tokenizer.model"


def joined(tokenizer: Any, vocabulary: Vocabulary, text: str) -> bytes:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return b"".join(vocabulary.bytes(token) for token in ids)


BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
WORDPIECE = wordpiece_tokenizer()
VOCABULARIES = {id(t): Vocabulary(t, len(t)) for t in (BYTE_LEVEL, BYTE_FALLBACK, WORDPIECE)}


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_byte_level(text: str) -> None:
    assert joined(BYTE_LEVEL, VOCABULARIES[id(BYTE_LEVEL)], text) == text.encode()


@given(text=st.text().filter(lambda text: "▁" not in text))
@settings(max_examples=200, deadline=None)
def test_byte_fallback(text: str) -> None:
    found = joined(BYTE_FALLBACK, VOCABULARIES[id(BYTE_FALLBACK)], text).decode()
    assert found in (text, " " + text)  # the space that such tokenizers put first


@given(words=st.lists(st.text(alphabet="abcdeghilnorstu", min_size=1, max_size=12), min_size=1))
@settings(max_examples=100, deadline=None)
def test_wordpiece(words: list[str]) -> None:
    text = " ".join(words)
    unknown = WORDPIECE.unk_token_id
    if unknown not in WORDPIECE(text, add_special_tokens=False)["input_ids"]:
        assert joined(WORDPIECE, VOCABULARIES[id(WORDPIECE)], text) == b" " + text.encode()


@pytest.fixture(scope="module")
def tiktoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Vocabulary, dict[bytes, int]]:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    ranks = write_tiktoken(path)
    tokenizer = tiktoken_tokenizer(path)
    return tokenizer, Vocabulary(tokenizer, len(tokenizer)), ranks


def test_tiktoken_bytes_are_those_of_its_file(tiktoken: tuple[Any, Vocabulary, dict[bytes, int]]) -> None:
    _, vocabulary, ranks = tiktoken
    assert {vocabulary.bytes(rank): rank for rank in ranks.values()} == ranks


@pytest.mark.skipif(not LLAMA3.is_file(), reason="no Llama 3 tokenizer here")
def test_llama_3() -> None:
    from attnlens.capture.models.meta_tokenizer import read_tiktoken

    tokenizer = tiktoken_tokenizer(LLAMA3)
    vocabulary = Vocabulary(tokenizer, 128256)
    ranks = read_tiktoken(LLAMA3)
    assert all(vocabulary.bytes(rank) == token for token, rank in ranks.items())
    assert vocabulary.text(128000) == "<|begin_of_text|>"
    assert [vocabulary.special(token) for token in (127999, 128000, 128255)] == [False, True, True]
    text = "Кто сестра Боба? 今日は 🙂🙃 \n\n\t 12345 हिन्दी"
    assert joined(tokenizer, vocabulary, text) == text.encode()


@pytest.mark.slow
def test_smollm2() -> None:
    from attnlens.capture.models import load

    tokenizer = load("smollm2-135m", device="cpu").tokenizer
    vocabulary = Vocabulary(tokenizer, 49152)
    for text in ("Alice is Bob's sister.", "été 今日は 🙂\n\n  12345", "\t\x00\u200b<|im_end|>"):
        assert joined(tokenizer, vocabulary, text) == text.encode()
    assert vocabulary.special(tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_fragments_specials_and_padding() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL, len(BYTE_LEVEL) + 8)
    assert len(vocabulary) == len(BYTE_LEVEL) + 8
    smile = BYTE_LEVEL("🦖", add_special_tokens=False)["input_ids"]
    assert len(smile) > 1
    assert re.search("<[0-9A-F]{2}>", vocabulary.text(smile[0]))
    assert (vocabulary.text(1), vocabulary.bytes(1), vocabulary.special(1)) == ("<begin>", b"<begin>", True)
    beyond = len(BYTE_LEVEL) + 3
    assert (vocabulary.text(beyond), vocabulary.bytes(beyond)) == (f"<unused {beyond}>", b"")
    assert not vocabulary.special(beyond)
    assert vocabulary.used(1)
    assert not vocabulary.used(beyond)
    for outside in (-1, len(vocabulary)):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            vocabulary.text(outside)


def test_added_words_are_literal_and_not_special() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["é#"])
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    token = tokenizer.convert_tokens_to_ids("é#")
    assert (vocabulary.bytes(token), vocabulary.special(token)) == ("é#".encode(), False)


class Foreign:
    """A tokenizer of which nothing is known but what every one can do."""

    all_special_ids = (0,)

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": 0, "a_": 1, "b_": 2}

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join("?a b"[token] for token in ids)


def test_unknown_kinds_decode() -> None:
    vocabulary = Vocabulary(Foreign(), 4)
    assert vocabulary.texts(range(4)) == ["<s>", "a", " ", "<unused 3>"]


@given(raw=st.binary())
def test_byte_level_characters_round_trip(raw: bytes) -> None:
    characters = to_characters(raw)
    assert to_bytes(characters) == raw
    assert characters.isprintable()
    assert " " not in characters


def test_byte_level_map_is_that_of_the_tokenizers_library() -> None:
    from tokenizers import pre_tokenizers

    assert {to_characters(bytes([value])) for value in range(256)} == set(pre_tokenizers.ByteLevel.alphabet())
    assert to_bytes("日") is None


def test_thousands_of_ids_are_fast(tiktoken: tuple[Any, Vocabulary, dict[bytes, int]]) -> None:
    tokenizer, _, _ = tiktoken
    vocabulary = Vocabulary(tokenizer, 60000)
    started = time.perf_counter()
    vocabulary.texts(range(60000))
    vocabulary.texts(range(60000))
    assert time.perf_counter() - started < 2.0 * (1 + os.getloadavg()[0])
