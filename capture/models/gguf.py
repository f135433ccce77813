"""GGUF files, dequantized while they are read: a .gguf file, or a folder that holds one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.capture.extra import require_package
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.state import load_options, model_from_state, require_all_weights
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError, ModelError
from attnlens.schemas.nearest import did_you_mean

SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
SPECIAL_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
HALF = {"F16": "float16", "BF16": "bfloat16"}


def matches(request: Request) -> bool:
    """A name that ends in .gguf, or a folder with such a file and no config.json."""
    path = request.path
    if path.suffix == ".gguf" and not path.is_dir():
        return True
    return path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf"))


def check(request: Request) -> None:
    """Refuse what is no whole GGUF file.

    Raises:
        ModelError: no such file, one of several parts, damaged or cut short.
        InputError: the folder holds several.
        MissingExtraError: the package gguf is not installed.
    """
    request.refuse_revision("a GGUF file")
    require_package("gguf", "a GGUF file")
    read_header(find_file(request.path))


def find_file(path: Path) -> Path:
    """The one GGUF file at `path`."""
    if not path.is_dir():
        if not path.is_file():
            beside = [one.name for one in sorted(path.parent.glob("*.gguf"))]
            before = "" if path.parent == Path() else f"{path.parent}/"
            raise ModelError(f"no such file: {path}{did_you_mean(path.name, beside, before=before)}")
        found = [path]
    else:
        found = sorted(path.glob("*.gguf"))
    if SPLIT.search(found[0].name):
        raise ModelError(
            f"{found[0]} is one part of a split GGUF file: merge the parts first (llama-gguf-split --merge)"
        )
    if len(found) > 1:
        raise InputError(
            f"{path} holds {len(found)} GGUF files, give one of them: {', '.join(f.name for f in found[:6])}"
        )
    return found[0]


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself: how many tensors of each type, and the ids of special tokens by their role."""

    types: dict[str, int]
    special: dict[str, int]


def read_header(path: Path) -> Header:
    """Read it; the tensors are located, not read.

    Raises:
        ModelError: not a GGUF file, damaged or cut short.
    """
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with GGUF")
    try:
        reader = GGUFReader(path)
        fields = {role: reader.get_field(key) for role, key in SPECIAL_KEYS.items()}
        special = {role: int(field.contents()) for role, field in fields.items() if field is not None}
    except Exception as error:  # it reads a memory map without looking where that ends
        raise ModelError(f"{path} is damaged or cut short: {one_line(error)}") from error
    return Header(dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)), special)


def load(request: Request, progress: Progress) -> LoadedModel:
    """Load and dequantize; dtype `auto` is float32, or the file's own half precision if nothing in it is quantized."""
    path = find_file(request.path)
    header = read_header(path)
    model, tokenizer = read_gguf(request, path, header)
    if request.quantize is not None:
        model = model_from_state(request, model.config, model.state_dict(), model.dtype)
    source = {"format": "gguf", "types": header.types, "dequantized_to": str(model.dtype).removeprefix("torch.")}
    return LoadedModel(model, tokenizer, path.name, None, {"source": source})


def outline(request: Request) -> tuple[Any, Any, str, Any]:
    """Configuration, tokenizer, name and dtype, from the file's header."""
    from transformers import AutoConfig

    check(request)
    path = find_file(request.path)
    header = read_header(path)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    return config, _read_tokenizer(path, header), path.name, _own_dtype(header)


def _own_dtype(header: Header) -> Any:
    """The file's own half precision if nothing in it is quantized, else float32."""
    import torch

    own = {HALF[name] for name in header.types if name in HALF} if set(header.types) <= {*HALF, "F32"} else set()
    return getattr(torch, own.pop()) if len(own) == 1 else torch.float32


def read_gguf(request: Request, path: Path, header: Header) -> tuple[Any, Any]:
    """The dequantized model, plain as if it had been loaded from a checkpoint of that dtype, and its tokenizer."""
    import transformers

    dtype = request.torch_dtype() or _own_dtype(header)
    tokenizer = _read_tokenizer(path, header)
    unquantized = Request(request.name, request.dtype, "cpu" if request.quantize else request.device)
    options = load_options(unquantized, dtype)
    if hasattr(transformers, "GgufConfig"):  # where it is known, its default keeps the blocks if it finds a kernel
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, **options
    )
    require_all_weights(path.name, info)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
    return model, tokenizer


def _read_tokenizer(path: Path, header: Header) -> Any:
    """The tokenizer in the file, with the special tokens that the file names.

    Not by AutoTokenizer: some versions of transformers guess another family's class from the file, which adds tokens.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    for role, token in header.special.items():
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(token))
    return tokenizer
