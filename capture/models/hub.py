"""Models in Hugging Face's layout: a local folder, or a name on the hub. The last source: it takes every name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.capture.models.checkpoint import check_weights
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.nearest import nearest_model
from attnlens.capture.models.quantize import describe_checkpoint
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.state import load_options, require_all_weights
from attnlens.capture.models.vocabulary_file import explain_vocabulary_files, require_same_pieces
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError, ModelError

HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")


def matches(request: Request) -> bool:
    """Every name."""
    return True


def check(request: Request) -> None:
    """Refuse a local folder that cannot be loaded, and names that are neither a folder nor a hub name.

    Raises:
        ModelError: the folder is incomplete or damaged, or there is no such folder.
        InputError: a file was given, or a revision for a local folder.
    """
    folder = request.path
    if folder.is_file():
        raise InputError(f"{request.name} is a file: give the folder of the model, or a .gguf file")
    if not folder.is_dir():
        if not HUB_NAME.fullmatch(request.name) or folder.is_absolute():
            raise ModelError(f"no such folder: {request.name}{nearest_model(request)}")
        return
    request.refuse_revision("a local folder")
    config = _read_config(folder)
    check_weights(folder, config)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES) and not _brings_tokenizer_code(folder):
        raise ModelError(f"no tokenizer in {request.name}: expected one of {', '.join(TOKENIZER_FILES)}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} is a PEFT adapter without its base model: load both in Python and pass the model to "
                "attnlens.capture.capture"
            )
        raise ModelError(f"no model in {folder}: it has no config.json, no params.json and no .gguf file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds {type(config).__name__}, expected a JSON object")
    return config


def _brings_tokenizer_code(folder: Path) -> bool:
    """Remote code names its own files."""
    try:
        return "auto_map" in json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False


def load(request: Request, progress: Progress) -> LoadedModel:
    """Load from the folder or the hub.

    Raises:
        ModelError: no such model, no causal language model, remote code that was not asked for.
    """
    from transformers import AutoModelForCausalLM

    prepared = _prepare(request)
    config, tokenizer, name, shared = prepared.config, prepared.tokenizer, prepared.name, prepared.shared
    local, dtype = request.path.is_dir(), _checkpoint_dtype(config)
    given = getattr(config, "quantization_config", None)
    options = load_options(request, dtype)
    model, info = AutoModelForCausalLM.from_pretrained(
        name, config=config, dtype=request.torch_dtype() or "auto", **options, **shared
    )
    require_all_weights(request.name, info)
    revision = None if local else _commit(request.name, shared["revision"])
    identity = request.short_name if local else request.name
    return LoadedModel(model, tokenizer, identity, revision, None if given is None else describe_checkpoint(given))


@dataclass(frozen=True)
class Prepared:
    """Configuration and tokenizer, and how transformers is to be asked for the rest."""

    config: Any
    tokenizer: Any
    name: str
    shared: dict[str, Any]


def outline(request: Request) -> tuple[Any, Any, str, Any]:
    """Configuration, tokenizer, name and dtype. Weights need not be there.

    Raises:
        ModelError: as `load`.
    """
    folder = request.path
    if folder.is_file():
        raise InputError(f"{request.name} is a file: give the folder of the model, or a .gguf file")
    if folder.is_dir():
        request.refuse_revision("a local folder")
        _read_config(folder)
    elif not HUB_NAME.fullmatch(request.name) or folder.is_absolute():
        raise ModelError(f"no such folder: {request.name}{nearest_model(request)}")
    prepared = _prepare(request)
    identity = request.short_name if folder.is_dir() else request.name
    return prepared.config, prepared.tokenizer, identity, _checkpoint_dtype(prepared.config)


def _prepare(request: Request) -> Prepared:
    from transformers import AutoTokenizer

    local = request.path.is_dir()
    shared: dict[str, Any] = {"trust_remote_code": request.trust_remote_code}
    name = str(request.path) if local else request.name
    if not local:
        shared |= {"revision": request.revision or "main", "local_files_only": not _hub_answers()}
    config = _load_config(request, name, shared)
    require_causal(request, config)
    given = getattr(config, "quantization_config", None)
    if given is not None and request.quantize is not None:
        raise ModelError(
            f"{request.name} is quantized already ({describe_checkpoint(given)['method']}): leave out --quantize"
        )
    folder = request.path if local else _snapshot(request.name, shared["revision"])
    plain = None if folder is None or _brings_tokenizer_code(folder) else folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **shared)
    except Exception as error:
        _explain_remote_code(request, error)
        if plain is not None:
            explain_vocabulary_files(request.name, plain)
        raise ModelError(f"the tokenizer of {request.name} cannot be loaded: {one_line(error)}") from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"no tokenizer in {request.name}: its vocabulary holds special tokens only")
    if plain is not None:
        require_same_pieces(request.name, plain, tokenizer)
    return Prepared(config, tokenizer, name, shared)


def _hub_answers() -> bool:
    """Whether it is worth asking: without a name server the hub's client retries for half a minute."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if getproxies().get(address.scheme):
        return True
    try:
        socket.getaddrinfo(address.hostname, None)
    except OSError:
        return False
    return True


def _load_config(request: Request, name: str, shared: dict[str, Any]) -> Any:
    from transformers import AutoConfig, __version__

    try:
        return AutoConfig.from_pretrained(name, **shared)
    except Exception as error:
        _explain_remote_code(request, error)
        if isinstance(error, OSError) and not request.path.is_dir():
            why = (
                "the hub cannot be reached and its cache has no such model"
                if shared["local_files_only"]
                else f"the hub has no such model for you ({one_line(error)})"
            )
            near = nearest_model(request)
            raise ModelError(f"no such model: there is no folder {request.name}, and {why}{near}") from error
        if "does not recognize this architecture" in str(error):
            kind = re.search(r"model type `([^`]*)`", str(error))
            what = f"model type {kind[1]!r}" if kind else "its model type"
            raise ModelError(f"{request.name}: {what} is not known to transformers {__version__}") from error
        raise ModelError(f"the config of {request.name} cannot be used: {one_line(error)}") from error


def _explain_remote_code(request: Request, error: Exception) -> None:
    if "trust_remote_code" in str(error) and not request.trust_remote_code:
        raise ModelError(
            f"{request.name} needs Python code that comes with the checkpoint: read it, then allow it with "
            "--trust-remote-code"
        ) from error


def require_causal(request: Request, config: Any) -> None:
    """Return if `config` is one of a causal language model.

    Raises:
        ModelError: an encoder, an encoder with decoder, a head for something else, or code that was not asked for.
    """
    from transformers import AutoModelForCausalLM

    architectures = list(getattr(config, "architectures", None) or ())
    found = architectures[0] if architectures else type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{request.name} is a {found}, an encoder with a decoder: only causal language models can be captured"
        )
    remote = getattr(config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in remote:
        if request.trust_remote_code:
            return
        if type(config) not in AutoModelForCausalLM._model_mapping:
            _explain_remote_code(request, ValueError("trust_remote_code"))
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(f"{request.name} is a {found}: not a causal language model")
    mapped = AutoModelForCausalLM._model_mapping[type(config)].__name__
    if architectures and not any(name == mapped or name.endswith(CAUSAL_HEADS) for name in architectures):
        raise ModelError(f"{request.name} is a {found}, expected {mapped}: it has no language-model head")


def _checkpoint_dtype(config: Any) -> Any:
    import torch

    text = config.get_text_config(decoder=True)
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def _commit(name: str, revision: str) -> str:
    """The commit that `revision` stands for, read from where the cache put the config."""
    folder = _snapshot(name, revision)
    return folder.name if folder is not None and folder.parent.name == "snapshots" else revision


def _snapshot(name: str, revision: str) -> Path | None:
    """The folder of the cache that holds the files of `revision`."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent if isinstance(path, str) else None
