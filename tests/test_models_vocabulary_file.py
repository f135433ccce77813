"""Folders whose tokenizer is a *.model file: what reads it, and one line where that cannot be."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attnlens.capture.models import load
from attnlens.capture.models.vocabulary_file import require_same_pieces
from attnlens.schemas.errors import AttnlensError, MissingExtraError, ModelError
from tiny import write_hf, write_tiktoken

TEXTS = ("the quickly red dog", "ünï 日本", "3.14 says the brown")
NOT_INSTALLED = "{} needs {}, which is not installed: pip install 'attnlens[capture]' (or pip install {})"


def write_sentencepiece(path: Path) -> Any:
    """A small byte-pair model in Llama 2's way; returns sentencepiece's own reader of it."""
    import sentencepiece

    written = io.BytesIO()
    text = [f"{a}ly {b} dog runs and says {b} {a}" for a in ("quick", "brown", "lazy") for b in ("red", "old", "sly")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=written,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model without a tokenizer."""
    write_hf(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / name).unlink(missing_ok=True)
    return tmp_path


class Without:
    """A finder that does not find a module."""

    def __init__(self, finder: Any, hidden: str) -> None:
        self._finder, self._hidden = finder, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, name: str, *more: Any) -> Any:
        hidden = name == self._hidden or name.startswith(self._hidden + ".")
        return None if hidden else self._finder.find_spec(name, *more)


def forget() -> None:
    from transformers.utils import import_utils

    for name in ("is_sentencepiece_available", "is_protobuf_available", "is_tiktoken_available"):
        getattr(getattr(import_utils, name), "cache_clear", lambda: None)()


@pytest.fixture
def uninstall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a module one that is not installed."""

    def hide(module: str) -> None:
        for name in [name for name in sys.modules if name == module or name.startswith(module + ".")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Without(finder, module) for finder in sys.meta_path])
        forget()

    yield hide
    monkeypatch.undo()
    forget()


def refusal(folder: Path) -> AttnlensError:
    with pytest.raises(AttnlensError) as caught:
        load(str(folder), device="cpu")
    return caught.value


@pytest.mark.parametrize("module", ["sentencepiece", "google.protobuf"])
def test_a_sentencepiece_model_names_the_package_that_is_missing(
    module: str, folder: Path, uninstall: Callable[[str], None]
) -> None:
    write_sentencepiece(folder / "tokenizer.model")
    uninstall(module)
    package = {"google.protobuf": "protobuf"}.get(module, module)
    what = f"tokenizer.model of {folder}, a sentencepiece model,"
    found = refusal(folder)
    assert type(found) is MissingExtraError
    assert str(found) == NOT_INSTALLED.format(what, package, package)


def test_a_tiktoken_vocabulary_names_the_package_that_is_missing(
    folder: Path, uninstall: Callable[[str], None]
) -> None:
    write_tiktoken(folder / "tokenizer.model")
    uninstall("tiktoken")
    what = f"tokenizer.model of {folder}, a tiktoken vocabulary,"
    found = refusal(folder)
    assert type(found) is MissingExtraError
    assert str(found) == NOT_INSTALLED.format(what, "tiktoken", "tiktoken")


def configure(folder: Path, **settings: Any) -> None:
    said = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | settings))


@pytest.mark.parametrize("configured", [True, False])
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece_or_none(configured: bool, folder: Path) -> None:
    pytest.importorskip("google.protobuf")
    pieces = write_sentencepiece(folder / "tokenizer.model")
    if configured:
        configure(folder)
    try:
        tokenizer = load(str(folder), device="cpu").tokenizer
    except ModelError as error:  # transformers 5.23 and a folder that is not configured, 5.1 and one that is
        if "and sentencepiece into ▁ a l i c e" not in str(error):
            raise
        return
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


def test_tokenizers_that_cut_text_otherwise_are_refused(folder: Path) -> None:
    class Tokenizer:
        unk_token = "<unk>"

        def __init__(self, first: str) -> None:
            self._first = first

        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            return {"input_ids": reader.encode(text, out_type=str)}

        def convert_ids_to_tokens(self, ids: list[str]) -> list[str]:
            return [self._first + ids[0].removeprefix("▁"), *ids[1:]]

    reader = write_sentencepiece(folder / "tokenizer.model")
    require_same_pieces("this", folder, Tokenizer("▁"))
    with pytest.raises(ModelError, match=r"cuts 'alice and bob are siblings\.' into"):
        require_same_pieces("this", folder, Tokenizer(""))
    configure(folder, add_prefix_space=False)  # then it is meant
    require_same_pieces("this", folder, Tokenizer(""))


def test_a_damaged_sentencepiece_model(folder: Path) -> None:
    pytest.importorskip("google.protobuf")
    path = folder / "tokenizer.model"
    write_sentencepiece(path)
    path.write_bytes(path.read_bytes()[:900])
    found = refusal(folder)
    assert type(found) is ModelError
    assert str(found).startswith(
        f"tokenizer.model of {folder} is neither a tiktoken vocabulary nor a sentencepiece model: "
    )


def test_packages_that_do_not_fit_each_other_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    google = pytest.importorskip("google.protobuf.runtime_version")
    write_sentencepiece(folder / "tokenizer.model")
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    if "runtime_version" not in Path(pb2.__file__).read_text():
        pytest.skip("this sentencepiece takes any protobuf")
    monkeypatch.delitem(sys.modules, pb2.__name__)
    monkeypatch.delattr(sys.modules["sentencepiece"], "sentencepiece_model_pb2")
    monkeypatch.setattr(google, "MAJOR", 6)
    found = refusal(folder)
    assert str(found).startswith("sentencepiece ")
    assert "does not work with protobuf" in str(found)
    assert str(found).endswith("pip install --upgrade sentencepiece protobuf")
