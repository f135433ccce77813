"""Puts a function in the place of transformers' `eager` attention, for one model and for as long as a `with` lasts.

A new name in transformers' table would bypass branches that models take for `eager` (masks, sinks, refusals) and
silently change what they compute; replacing the entry that the model asks for anyway changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""(module, query, key, value, mask, **kwargs) → output (1, query, head, feature), weights (1, head, query, key)"""

Tap = Callable[..., tuple[Tensor, Tensor | None]]
"""As `Attention`, with the model's own eager function before the other arguments."""

_patching = threading.RLock()
_MARK = "_output_capturing_hooks_installed"
"""Attribute by which transformers remembers that its own hooks are on a model."""


def eager_configuration(model: nn.Module) -> AbstractContextManager[None]:
    """Lets every part of `model` ask for `eager` attention; restores what each asked for before."""
    return configuration_of(model, "eager")


@contextmanager
def configuration_of(model: nn.Module, implementation: str) -> Iterator[None]:
    """Lets every part of `model` ask for this attention; restores what each asked for before."""
    configs = {id(config): config for module in model.modules() if (config := _own_config(module)) is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            _set_implementation(config, implementation)
        yield
    finally:
        for key, config in configs.items():
            _set_implementation(config, before[key])


def _own_config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if hasattr(config, "_attn_implementation_internal") else None


def _set_implementation(config: Any, name: str | None) -> None:
    # The property's setter also descends into sub-configs, each of which is restored by itself: go past it.
    config._attn_implementation_internal = name


@contextmanager
def hooks_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the hooks that it had before.

    transformers puts hooks of its own on a model the first time it reports attentions, and leaves them there.
    """
    before = {module: (set(module._forward_hooks), set(module._forward_pre_hooks)) for module in model.modules()}
    marked = {module for module in before if _MARK in vars(module)}
    try:
        yield
    finally:
        for module, (after_forward, before_forward) in before.items():
            for hooks, kept in ((module._forward_hooks, after_forward), (module._forward_pre_hooks, before_forward)):
                for key in [key for key in hooks if key not in kept]:
                    del hooks[key]
            if _MARK in vars(module) and module not in marked:
                delattr(module, _MARK)


@contextmanager
def tapped(model: nn.Module, tap: Tap) -> Iterator[None]:
    """Routes the eager attention of `model`'s modules through `tap(own, module, query, key, value, mask, …)`.

    `own` is the eager function that the module would have called. Modules of other models are left alone.
    """
    members = {id(module) for module in model.modules()}
    with _patching, eager_configuration(model):
        original = AttentionInterface.get_interface

        def get_interface(self: AttentionInterface, implementation: str, default: Attention) -> Attention:
            own: Attention = original(self, implementation, default)
            if implementation != "eager":
                return own

            def attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
                if id(module) not in members:
                    return own(module, *args, **kwargs)
                return tap(own, module, *args, **kwargs)

            return attention

        AttentionInterface.get_interface = get_interface
        try:
            yield
        finally:
            AttentionInterface.get_interface = original
