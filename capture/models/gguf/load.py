"""From a .gguf file, or a folder that holds one, to a model that is plain as if it had never been quantized."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from attnlens.capture.extra import require_package
from attnlens.capture.models.adapter import refuse_beside
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.gguf.file import Header, find_file, read_header
from attnlens.capture.models.gguf.model import (
    Described,
    assigned,
    check_places,
    configuration,
    describe,
    left_out,
    parameters,
)
from attnlens.capture.models.gguf.tokenizer import read_tokenizer
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.state import model_from_state
from attnlens.progress import Progress
from attnlens.schemas.errors import AttnlensError, ModelError

HALF = {"F16": "float16", "BF16": "bfloat16"}


def matches(request: Request) -> bool:
    """A name that ends in .gguf, or a folder with such a file and no config.json."""
    path = request.path
    if path.suffix == ".gguf" and not path.is_dir():
        return True
    return path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf"))


def check(request: Request) -> None:
    """Refuse what is no whole GGUF file, or has keys or tensors that we cannot apply.

    Raises:
        ModelError: no such file, one of several parts, damaged or cut short; or names key or tensor.
        InputError: the folder holds several.
        MissingExtraError: the package gguf is not installed.
    """
    request.refuse_revision("a GGUF file")
    require_package("gguf", "a GGUF file")
    if request.path.is_dir():
        refuse_beside(request.path, "a GGUF file")
    path = find_file(request.path)
    header = read_header(path)
    try:
        assigned(_described(request, header))
    except AttnlensError:
        raise
    except Exception as error:  # keys of another kind than they should be
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error


def load(request: Request, progress: Progress) -> LoadedModel:
    """Load and dequantize; dtype `auto` is float32, or the file's own half precision if nothing in it is quantized."""
    path = find_file(request.path)
    header = read_header(path)
    model, tokenizer, described = _read(request, header)
    source: dict[str, Any] = {
        "format": "gguf",
        "types": header.types,
        "dequantized_to": str(request.torch_dtype() or _own_dtype(header)).removeprefix("torch."),
    }
    if described.noted:
        source["noted_keys"] = described.noted
    return LoadedModel(model, tokenizer, path.name, None, {"source": source}, left_out=left_out(described))


def outline(request: Request) -> tuple[Any, Any, str, Any]:
    """Configuration, tokenizer, name and dtype, from the file's header."""
    check(request)
    path = find_file(request.path)
    described = _described(request, read_header(path))
    config = configuration(described)
    check_places(described, config)
    return config, _own_tokenizer(request, described.header), path.name, _own_dtype(described.header)


def _described(request: Request, header: Header) -> Described:
    described = describe(header, tokenizer=request.tokenizer is None)
    return dataclasses.replace(described, ignored=request.ignore_weights)


def _own_tokenizer(request: Request, header: Header) -> Any:
    """The one in the file, None where another was asked for."""
    return read_tokenizer(header) if request.tokenizer is None else None


def _own_dtype(header: Header) -> Any:
    """The file's own half precision if nothing in it is quantized, else float32."""
    import torch

    own = {HALF[name] for name in header.types if name in HALF} if set(header.types) <= {*HALF, "F32"} else set()
    return getattr(torch, own.pop()) if len(own) == 1 else torch.float32


def read_gguf(request: Request, path: Path, header: Header) -> tuple[Any, Any]:
    """The dequantized model, plain as if it had been loaded from a checkpoint of that dtype, and its tokenizer."""
    model, tokenizer, _ = _read(request, header)
    return model, tokenizer


def _read(request: Request, header: Header) -> tuple[Any, Any, Described]:
    described = _described(request, header)
    tokenizer = _own_tokenizer(request, header)
    dtype = request.torch_dtype() or _own_dtype(header)
    config = configuration(described)
    check_places(described, config)
    model = model_from_state(request, config, dict(parameters(described, dtype)), dtype)
    return model, tokenizer, described
