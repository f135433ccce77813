"""What is recorded about the model and the machine: enough to repeat a capture, nothing that says where it ran."""

from __future__ import annotations

import json
import math
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

import attnlens
from attnlens.capture.changes import Changes, unwrapped
from attnlens.capture.origin import Origin
from attnlens.capture.probe import Probed
from attnlens.schemas.metadata import ModelInfo

_RECORDED = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "zarr", "numpy")
_PRIVATE = frozenset({"_name_or_path", "name_or_path", "transformers_version"})
"""Config fields left out: the first may be a path on this machine."""


def model_info(model: nn.Module, probed: Probed, *, name: str, origin: Origin, changes: Changes) -> ModelInfo:
    """The record of a model, by the `name` that it goes by."""
    config: Any = getattr(model, "config", None)
    declared = getattr(config, "quantization_config", None)
    quantization = origin.quantization
    if quantization is None and declared is not None:
        quantization = plain(declared if isinstance(declared, dict) else declared.to_dict())
    return ModelInfo(
        id=name,
        revision=origin.revision,
        architecture=type(unwrapped(model)).__name__,
        config=plain(config.to_dict()) if config is not None else {},
        dtype=str(getattr(model, "dtype", torch.float32)).removeprefix("torch."),
        quantization=quantization,
        n_layer=len(probed.layers),
        n_head=max(layer.n_head for layer in probed.table),
        vocabulary_size=probed.vocabulary_size,
        layers=list(probed.table),
        tokenizer=origin.tokenizer,
        left_out=list(origin.left_out),
        adapters=list(changes.adapters),
        hooks=list(changes.hooks),
    )


def plain(value: Any) -> Any:
    """`value` as JSON values, without private fields; numbers JSON has no word for become strings."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if key not in _PRIVATE}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return str(value)


def versions() -> dict[str, str]:
    """Versions of the packages that made the capture."""
    found = {"attnlens": attnlens.__version__}
    for package in _RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
