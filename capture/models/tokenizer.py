"""A tokenizer that lies elsewhere than its model: a folder, a file, or a name on the hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from attnlens.capture.models import hub
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.gguf.file import read_header
from attnlens.capture.models.gguf.tokenizer import read_tokenizer
from attnlens.capture.models.meta_tokenizer import check_tokenizer, is_tiktoken, tiktoken_tokenizer
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.sentencepiece import read_sentencepiece
from attnlens.capture.models.vocabulary_file import explain_vocabulary_files, require_same_pieces
from attnlens.schemas.errors import AttnlensError, ModelError

CONFIG = "tokenizer_config.json"
JSON = "tokenizer.json"


def check_tokenizer_source(request: Request) -> None:
    """Refuse a tokenizer that cannot be there, before a model is loaded.

    Raises:
        ModelError: there is no such file or folder.
        MissingExtraError: a package is missing that reads the file.
    """
    if request.tokenizer is None:
        return
    path = _path(request)
    if not path.exists() and (not hub.HUB_NAME.fullmatch(request.tokenizer) or path.is_absolute()):
        raise ModelError(f"no such tokenizer: {request.tokenizer}; expected a folder, a file or a hub name")
    file = _file(path) if path.exists() else None
    if file is not None and file.suffix not in (".gguf", ".json"):
        check_tokenizer(file)


def tokenizer_name(request: Request) -> str | None:
    """What a store may say about it: a hub name, or the last part of a path. None: it comes with the model."""
    if request.tokenizer is None:
        return None
    path = _path(request)
    return path.resolve().name if path.exists() else request.tokenizer


def load_tokenizer(request: Request) -> Any | None:
    """The tokenizer that `request` names, None if it names none.

    Raises:
        ModelError: there is no such tokenizer, or it is damaged.
    """
    if request.tokenizer is None:
        return None
    path = _path(request)
    try:
        file = _file(path) if path.exists() else None
        tokenizer = _read_file(file) if file is not None else _read_folder(request, path)
    except AttnlensError:
        raise
    except Exception as error:  # a foreign file fails in any way a library knows; the cause is kept
        if path.exists():
            explain_vocabulary_files(request.tokenizer, path if path.is_dir() else path.parent)
        raise ModelError(f"the tokenizer {request.tokenizer} cannot be loaded: {one_line(error)}") from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"no tokenizer in {request.tokenizer}: its vocabulary holds special tokens only")
    return tokenizer


def with_tokenizer(request: Request, loaded: LoadedModel) -> LoadedModel:
    """The model with the tokenizer that `request` names, if it names one and the model does not have it yet.

    Raises:
        ModelError: there is no such tokenizer, or it belongs to another model.
    """
    tokenizer = None if loaded.tokenizer_id is not None else load_tokenizer(request)
    if tokenizer is None:
        return loaded
    check_size(request, tokenizer, loaded.model.get_input_embeddings().weight.shape[0])
    return dataclasses.replace(loaded, tokenizer=tokenizer, tokenizer_id=tokenizer_name(request))


def check_size(request: Request, tokenizer: Any, rows: int) -> None:
    """Return if every id of a tokenizer that lies elsewhere has a row in the model's embedding.

    Raises:
        ModelError: it belongs to another model.
    """
    if request.tokenizer is None:
        return
    last = max(tokenizer.get_vocab().values())
    if last >= rows:
        raise ModelError(
            f"the tokenizer {request.tokenizer} has ids up to {last} and the embedding of {request.name} {rows} rows: "
            "they do not belong together"
        )


def _path(request: Request) -> Path:
    return Path(request.tokenizer or "").expanduser()


def _file(path: Path) -> Path | None:
    """The one file to read; None for what transformers reads as a folder."""
    if path.is_file():
        # What lies beside the file belongs to it: special tokens, the chat template.
        beside = path.name in (JSON, "tokenizer.model") and (path.parent / CONFIG).is_file()
        return None if beside else path
    if any((path / name).is_file() for name in (CONFIG, JSON)):
        return None
    found = [*path.glob("tokenizer.model"), *path.glob("original/tokenizer.model"), *path.glob("*.gguf")]
    return found[0] if found and not (path / "config.json").is_file() else None


def _read_file(path: Path) -> Any:
    if path.suffix == ".gguf":
        return read_tokenizer(read_header(path))
    if path.suffix == ".json":
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
    return tiktoken_tokenizer(path) if is_tiktoken(path) else read_sentencepiece(path)


def _read_folder(request: Request, path: Path) -> Any:
    from transformers import AutoTokenizer

    if path.exists():
        folder = path if path.is_dir() else path.parent
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=request.trust_remote_code)
        if not hub.brings_tokenizer_code(folder):
            require_same_pieces(path.name, folder, tokenizer)
        return tokenizer
    reached = hub.hub_answers()
    try:
        return AutoTokenizer.from_pretrained(
            request.tokenizer, trust_remote_code=request.trust_remote_code, local_files_only=not reached
        )
    except OSError as error:
        where = "the hub has none for you" if reached else "the hub cannot be reached and its cache has none"
        raise ModelError(
            f"no such tokenizer: there is no file or folder {request.tokenizer}, and {where} of this name"
        ) from error
