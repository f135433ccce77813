"""A tokenizer that lies elsewhere than its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers.utils import is_protobuf_available

import attnlens
from attnlens.capture.forecast.model import open_model
from attnlens.capture.models import load
from attnlens.capture.run import CaptureOptions, run
from attnlens.progress import Silent
from attnlens.schemas.errors import MissingExtraError, ModelError
from tiny import CORPUS, TEMPLATE, byte_level_tokenizer, llama, write_meta, write_tiktoken

TEXT = "Who is Bob's sister? 今日"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights alone."""
    folder = tmp_path_factory.mktemp("model")
    llama(vocab_size=560).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sentencepiece models: byte pairs, and a unigram model."""
    folder = tmp_path_factory.mktemp("pieces")
    for name, kind in (("tokenizer", "bpe"), ("unigram", "unigram")):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 10),
            model_prefix=str(folder / name),
            model_type=kind,
            vocab_size=400 if kind == "bpe" else 340,
            byte_fallback=True,
            character_coverage=0.99,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    return folder


def ids(tokenizer: Any, text: str = TEXT) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_folder_or_a_file_in_it_comes_with_its_template(model: Path, tmp_path: Path) -> None:
    byte_level_tokenizer(TEMPLATE).save_pretrained(tmp_path / "words")
    with pytest.raises(ModelError, match=r"no tokenizer in .* named by tokenizer"):
        load(str(model))
    for place in (tmp_path / "words", tmp_path / "words" / "tokenizer.json"):
        loaded = load(str(model), tokenizer=str(place))
        assert ids(loaded.tokenizer) == ids(byte_level_tokenizer())
        assert loaded.tokenizer.chat_template == TEMPLATE
        assert loaded.tokenizer_id == loaded.tokenizer.name_or_path == place.name
        assert loaded.origin().tokenizer == place.name


def test_a_json_file_alone(model: Path, tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "tokenizer.json", tmp_path / "mine.json")
    found = load(str(model), tokenizer=str(tmp_path / "mine.json")).tokenizer
    assert ids(found) == Tokenizer.from_file(str(tmp_path / "mine.json")).encode(TEXT, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["tokenizer.model", "unigram.model"])
def test_a_sentencepiece_model(model: Path, pieces: Path, name: str) -> None:
    loaded = load(str(model), tokenizer=str(pieces / name))
    expected = sentencepiece.SentencePieceProcessor(model_file=str(pieces / name)).encode(TEXT)
    assert ids(loaded.tokenizer) == expected
    assert loaded.tokenizer_id == name


def test_meta_weights_apart_from_their_tokenizer(tmp_path: Path) -> None:
    write_meta(tmp_path / "weights")
    expected = ids(load(str(tmp_path / "weights")).tokenizer)
    (tmp_path / "apart").mkdir()
    (tmp_path / "weights" / "tokenizer.model").rename(tmp_path / "apart" / "tokenizer.model")
    with pytest.raises(ModelError, match="no tokenizer in"):
        load(str(tmp_path / "weights"))
    for place in (tmp_path / "apart", tmp_path / "apart" / "tokenizer.model"):
        loaded = load(str(tmp_path / "weights"), tokenizer=str(place))
        assert ids(loaded.tokenizer) == expected
        assert loaded.tokenizer_id == place.name
        assert len(loaded.model.generation_config.eos_token_id) == 3
    byte_level_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="has 380 tokens and the embedding 556 rows"):
        load(str(tmp_path / "weights"), tokenizer=str(tmp_path / "other"))


def test_one_that_is_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "model")  # 384 rows
    write_tiktoken(tmp_path / "tokenizer.model")  # 300 + 256 tokens
    said = "has ids up to 555 and the embedding of .* 384 rows: they do not belong together"
    with pytest.raises(ModelError, match=said):
        load(str(tmp_path / "model"), tokenizer=str(tmp_path / "tokenizer.model"))
    options = CaptureOptions(
        model=str(tmp_path / "model"), output=tmp_path / "x.zarr", tokenizer=str(tmp_path / "tokenizer.model")
    )
    with pytest.raises(ModelError, match=said):
        open_model(options, Silent())


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "no such name", "nobody/nothing"])
def test_a_tokenizer_that_is_not_there(model: Path, name: str) -> None:
    with pytest.raises(ModelError, match="no such tokenizer"):
        load(str(model), tokenizer=name)


def test_a_damaged_tokenizer_is_one_line(model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "some.model"):
        (tmp_path / name).write_text("{")
        with pytest.raises(ModelError) as refusal:
            load(str(model), tokenizer=str(tmp_path / name))
        assert name in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_the_package_that_a_sentencepiece_folder_needs_is_named(model: Path, pieces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(model, folder)
    shutil.copy(pieces / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    if not is_protobuf_available():
        with pytest.raises(MissingExtraError, match=r"sentencepiece model.*pip install protobuf"):
            load(str(folder))
    else:
        expected = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(TEXT)
        assert ids(load(str(folder)).tokenizer) == expected


def test_the_store_names_it(model: Path, tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path / "words")
    options = CaptureOptions(
        model=str(model),
        output=tmp_path / "run.zarr",
        tokenizer=str(tmp_path / "words"),
        prompt="Who?",
        max_new_tokens=1,
    )
    run(options, Silent())
    assert attnlens.open(tmp_path / "run.zarr")[0].metadata.model.tokenizer == "words"
    assert str(tmp_path) not in json.dumps(attnlens.open(tmp_path / "run.zarr")[0].metadata.model_dump(mode="json"))
    assert open_model(options, Silent()).tokenizer.get_vocab() == byte_level_tokenizer().get_vocab()
