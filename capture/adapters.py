"""The adapters in a model, found by looking at it: of a `PeftModel`, or put in by transformers' `load_adapter`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import Adapter

if TYPE_CHECKING:
    import torch
    from torch import nn

WRAPPER = "base_model.model."
"""What a `PeftModel` puts before the names of a model."""


def adapters_of(model: nn.Module) -> tuple[Adapter, ...]:
    """Every adapter in `model`, active or not, in the order in which they were added.

    A model in which peft has put nothing has none, and then peft is not imported. An adapter that was merged and
    unloaded has become part of the weights and cannot be seen.

    Raises:
        ModelError: names an adapter whose weights peft cannot list, or one that works behind some tokens only.
    """
    if "peft" not in sys.modules:  # nobody can have put an adapter in without it
        return ()
    described: dict[tuple[int, str], Adapter] = {}
    for owner in model.modules():
        for name, config in _configurations(owner):
            known = id(config), name  # a PeftModel and the model in it share them, and so may two adapters
            if known not in described:
                described[known] = _describe(model, owner, name, config)
    return tuple(described.values())


def _configurations(module: nn.Module) -> Iterator[tuple[str, Any]]:
    found = getattr(module, "peft_config", None)
    if isinstance(found, Mapping):
        yield from found.items()


def _describe(model: nn.Module, owner: nn.Module, name: str, config: Any) -> Adapter:
    layers = dict(_tuned(model, name))
    if layers:
        active = any(name in layer.active_adapters and not layer.disable_adapters for layer in layers.values())
    else:  # a learned prompt has no layers of its own
        active = name in _names(getattr(owner, "active_adapter", ())) and not getattr(
            owner, "_adapters_disabled", False
        )
    if active:
        require_every_token(name, config)
    kind = getattr(config, "peft_type", None)
    return Adapter(
        name=name,
        type=str(getattr(kind, "value", kind)),
        rank=_common(layers.values(), "r", name, int),
        scaling=_common(layers.values(), "scaling", name, float),
        targets=sorted({_target(path, layer) for path, layer in layers.items()}),
        active=active,
        merged=any(name in layer.merged_adapters for layer in layers.values()),
        digest=digest(weights_of(owner, name)),
    )


def require_every_token(name: str, config: Any) -> None:
    """Return if the adapter changes weights for every token alike.

    Raises:
        ModelError: it is at work behind some tokens of the text only (aLoRA), which one pass cannot tell from another.
    """
    if getattr(config, "alora_invocation_tokens", None):
        raise ModelError(
            f"the adapter of {name} works only behind its alora_invocation_tokens, and a token that is fed alone does "
            "not see them: it cannot be captured"
        )


def _tuned(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """The layers, by path, in which the adapter `name` has weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in model.named_modules():
        kind = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if kind and any(_part(module, attribute, name) is not None for attribute in module.adapter_layer_names):
            yield path, module


def _part(layer: Any, attribute: str, name: str) -> Any:
    """What a layer holds for one adapter under `attribute`, a table by adapters; None where there is nothing."""
    table: Any = getattr(layer, attribute, None)
    return table[name] if hasattr(table, "keys") and name in table.keys() else None  # noqa: SIM118


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of `model` by path, without those that adapters brought."""
    layers: tuple[str, ...] = ()
    if "peft" in sys.modules:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        kinds = BaseTunerLayer | AuxiliaryTrainingWrapper
        layers = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, kinds))
    for path, module in model.named_modules():
        within = [path.removeprefix(layer).partition(".")[0] for layer in layers if path.startswith(layer)]
        if all(part in ("base_layer", "original_module") for part in within):
            yield path, module


def _names(active: Any) -> tuple[str, ...]:
    return (active,) if isinstance(active, str) else tuple(active) if isinstance(active, list | tuple) else ()


def _common(layers: Any, attribute: str, name: str, kind: type[Any]) -> Any:
    """The value that all layers share; None where there is none, or where they differ."""
    tables = [getattr(layer, attribute, None) for layer in layers]
    values = {kind(table[name]) for table in tables if isinstance(table, Mapping) and name in table}
    return values.pop() if len(values) == 1 else None


def _target(path: str, layer: Any) -> str:
    """The last words of a path: `q_proj`, or `mlp.0` where the last is a number."""
    words = [word for word in path.split(".") if word != "base_layer"]
    start = next((at for at in range(len(words) - 1, -1, -1) if not words[at].isdigit()), 0)
    parameter = getattr(layer, "parameter_name", None)  # an adapter of one parameter, not of a layer
    return ".".join([*words[start:], *([parameter] if isinstance(parameter, str) else [])])


def weights_of(owner: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the names under which peft saves them, without the wrapper's prefix.

    Raises:
        ModelError: there are none that can be listed.
    """
    import torch
    from peft import get_peft_model_state_dict

    try:
        # without the embedding layers: to decide about them, peft asks the hub; trained ones are there in any case
        state = get_peft_model_state_dict(owner, adapter_name=name, save_embedding_layers=False)
    except (ValueError, KeyError, AttributeError, NotImplementedError):
        # some types keep tensors in a wrapper that is gone; the layers refer to them
        state = _parts(owner, name)
    if not state:
        raise ModelError(f"the weights of the adapter {name!r} cannot be listed")
    return {key.removeprefix(WRAPPER): tensor for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _parts(owner: nn.Module, name: str) -> dict[str, Any]:
    """The same from the layers, by path and attribute."""
    from torch import nn

    found: dict[str, Any] = {}
    for path, layer in _tuned(owner, name):
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            part = _part(layer, attribute, name)
            inner = part.state_dict() if isinstance(part, nn.Module) else {"": part}
            found |= {f"{path}.{attribute}.{key}".rstrip("."): tensor for key, tensor in inner.items()}
    return found


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over, in order of names: a line `NAME DTYPE SHAPE`, then the tensor's bytes."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor: Any = tensors[name].detach()
        if hasattr(tensor, "full_tensor"):  # split over several processes
            tensor = tensor.full_tensor()
        dtype, shape = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
        total.update(f"{name} {dtype} {shape}\n".encode())
        total.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
