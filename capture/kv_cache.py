"""The cache of keys and values, as a model takes it and returns it: transformers 5.24 renamed it.

Until then the argument and the output field are `past_key_values`, or `cache_params` in state-space models; since then
both are `cache`, the older names warn, and 5.40 drops them. Code that comes with a checkpoint keeps the name of the
version it was written for. So the model is asked, not the version.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

NAMES = ("cache", "past_key_values", "cache_params")
"""Newest first."""


def accepted(model: nn.Module, *names: str) -> str | None:
    """The first of `names` that is an argument of the model's forward; wrappers (PEFT) are looked through."""
    inner = model
    while True:
        arguments = inspect.signature(inner.forward).parameters
        for name in names:
            if name in arguments:
                return name
        deeper = getattr(inner, "model", None) or getattr(inner, "base_model", None)
        if "kwargs" not in arguments or not isinstance(deeper, nn.Module) or deeper is inner:
            return None
        inner = deeper


def give(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument that hands `cache` to the model's forward."""
    own = {field.name for field in fields(CausalLMOutputWithPast)}
    name = accepted(model, *NAMES) or next(name for name in NAMES if name in own)
    return {name: cache}


def taken(output: Any) -> Any:
    """The cache in a model's output; None where there is none."""
    # transformers' outputs answer to the older names as well, and warn: there only what they hold is asked for.
    names = [name for name in NAMES if not isinstance(output, ModelOutput) or name in vars(output)]
    return next((cache for name in names if (cache := getattr(output, name, None)) is not None), None)
