"""Models in Hugging Face's layout: a local folder, or a name on the hub. The last source: it takes every name."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.capture.models.account import account
from attnlens.capture.models.adapter import CONFIG, AdapterSource, attach, bare, in_folder, on_hub
from attnlens.capture.models.checkpoint import check_weights
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.generation_file import keep_dropped
from attnlens.capture.models.nearest import nearest_model
from attnlens.capture.models.quantize import (
    declared_quantization,
    describe_checkpoint,
    require_known,
    require_unpacked,
)
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.state import load_options
from attnlens.capture.models.vocabulary_file import explain_vocabulary_files, require_same_pieces
from attnlens.capture.models.watch import watching
from attnlens.capture.placeholders import keep_placeholders
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError, ModelError, Setting

HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of names of classes with a language-model head; the last is one with towers for images or sound, too."""


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
    source = in_folder(folder, request.short_name)
    if source is not None and source.base is not None:
        check(_base_request(request, source))
        return
    config = _read_config(folder)
    check_weights(folder, config)
    if request.tokenizer is not None:
        return
    if not any((folder / name).is_file() for name in TOKENIZER_FILES) and not brings_tokenizer_code(folder):
        raise ModelError(
            f"no tokenizer in {request.name}: expected one of {', '.join(TOKENIZER_FILES)}; one that lies elsewhere is "
            "named by ",
            Setting("tokenizer"),
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"no model in {folder}: it has no config.json, no params.json and no .gguf file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds {type(config).__name__}, expected a JSON object")
    return config


def brings_tokenizer_code(folder: Path) -> bool:
    """Whether the tokenizer is remote code, which names its own files."""
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

    source = _find_adapter(request)
    if source is not None and request.tensor_parallel:
        raise InputError(Setting("tensor_parallel"), f" splits no adapters, and {request.name} has one: leave it out")
    asked, request = request, request if source is None else _base_request(request, source)
    prepared = _prepare(request, None if source is None else asked)
    config, tokenizer, name, shared = prepared.config, prepared.tokenizer, prepared.name, prepared.shared
    local, dtype = request.path.is_dir(), _checkpoint_dtype(config)
    given = declared_quantization(config)
    options = load_options(request, dtype)
    with watching() as watch, bare():
        model, _ = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=request.torch_dtype() or "auto", **options, **shared
        )
    keep_placeholders(model, config)
    folder = request.path if local else _snapshot(request.name, shared["revision"])
    keep_dropped(getattr(model, "generation_config", None), folder)
    left_out = account(request.name, watch, request.ignore_weights)
    if given is not None:
        require_unpacked(request.name, given, watch)
    adapters = () if source is None else attach(model, source)
    revision = None if local else _commit(request.name, shared["revision"])
    identity = request.short_name if local else request.name
    quantization = None if given is None else describe_checkpoint(given)
    return LoadedModel(model, tokenizer, identity, revision, quantization, left_out=left_out, adapters=adapters)


def _find_adapter(request: Request) -> AdapterSource | None:
    if request.path.is_dir():
        return in_folder(request.path, request.short_name)
    return on_hub(request.name, _shared(request))


def _base_request(request: Request, source: AdapterSource) -> Request:
    """The request for the model that an adapter belongs to.

    Raises:
        ModelError: it is neither a folder nor a hub name, or an adapter itself.
    """
    if source.base is None:
        return request
    near = request.path / source.base  # a folder that moved together with the adapter's
    place = near if near.is_dir() else Path(source.base).expanduser()
    if place.is_dir():
        if in_folder(place, place.name) is not None:
            raise ModelError(f"the base model of the adapter {source.name}, {place}, has an adapter of its own")
        if not (place / "config.json").is_file():
            raise ModelError(
                f"the base model of the adapter {source.name}, {place}, has no config.json: adapters are applied to "
                "models in Hugging Face's layout only"
            )
        return dataclasses.replace(request, name=str(place), revision=None)
    if not HUB_NAME.fullmatch(source.base):
        raise ModelError(
            f"the adapter {source.name} names {source.base} as its base model, and there is no such folder: set "
            f"base_model_name_or_path in its {CONFIG} to a folder or a hub name"
        )
    return dataclasses.replace(request, name=source.base, revision=source.revision)


def _brings_tokenizer(request: Request) -> bool:
    """Whether an adapter comes with a tokenizer; else it is the base model's."""
    from transformers.utils import cached_file

    if request.path.is_dir():
        return any((request.path / name).is_file() for name in TOKENIZER_FILES)
    options = {key: value for key, value in _shared(request).items() if key != "trust_remote_code"}
    found = cached_file(request.name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **options)
    return found is not None


def _shared(request: Request) -> dict[str, Any]:
    """What every call of transformers is told."""
    shared: dict[str, Any] = {"trust_remote_code": request.trust_remote_code}
    if not request.path.is_dir():
        shared |= {"revision": request.revision or "main", "local_files_only": not hub_answers()}
    return shared


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
    source = None
    if folder.is_dir():
        request.refuse_revision("a local folder")
        source = in_folder(folder, request.short_name)
        if source is None or source.base is None:
            _read_config(folder)
    elif not HUB_NAME.fullmatch(request.name) or folder.is_absolute():
        raise ModelError(f"no such folder: {request.name}{nearest_model(request)}")
    else:
        source = on_hub(request.name, _shared(request))
    asked, request = request, request if source is None else _base_request(request, source)
    prepared = _prepare(request, None if source is None else asked)
    identity = request.short_name if request.path.is_dir() else request.name
    return prepared.config, prepared.tokenizer, identity, _checkpoint_dtype(prepared.config)


def _prepare(request: Request, adapter: Request | None = None) -> Prepared:
    """`adapter`: what was asked for, where `request` is for its base."""
    from transformers import AutoTokenizer

    shared = _shared(request)
    name = str(request.path) if request.path.is_dir() else request.name
    config = _load_config(request, name, shared)
    require_causal(request, config)
    given = declared_quantization(config)
    if given is not None:
        require_known(request.name, given)
    if given is not None and request.quantize is not None:
        raise ModelError(
            f"{request.name} is quantized already ({describe_checkpoint(given)['method']}): leave out ",
            Setting("quantize"),
        )
    if request.tokenizer is not None:  # it is read when the model is there
        return Prepared(config, None, name, shared)
    speaker = adapter if adapter is not None and _brings_tokenizer(adapter) else request
    heard = _shared(speaker)
    folder = speaker.path if speaker.path.is_dir() else _snapshot(speaker.name, heard["revision"])
    plain = None if folder is None or brings_tokenizer_code(folder) else folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(speaker.path) if speaker.path.is_dir() else speaker.name, **heard)
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


def hub_answers() -> bool:
    """Whether it is worth asking: without a name server the hub's client retries for half a minute."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        address = urlsplit(constants.ENDPOINT)
        if getproxies().get(address.scheme):
            return True
        socket.getaddrinfo(address.hostname, None)
    except (OSError, ValueError):  # ValueError: HF_ENDPOINT is no address
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
            f"{request.name} needs Python code that comes with the checkpoint: read it, then allow it with ",
            Setting("trust_remote_code=True", "--trust-remote-code"),
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
