"""What changed a model since its checkpoint was loaded, as far as it can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from attnlens.capture.adapters import adapters_of
from attnlens.capture.hooks import hooks_of
from attnlens.capture.origin import Origin
from attnlens.schemas.metadata import Adapter, Hook


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Adapters and hooks of a model."""

    adapters: tuple[Adapter, ...] = ()
    hooks: tuple[Hook, ...] = ()


def changes_of(model: nn.Module, origin: Origin) -> Changes:
    """What is on a model that nothing of ours is on. Adapters that were merged and are gone are known by its origin.

    Raises:
        ModelError: names an adapter whose weights cannot be listed.
    """
    adapters = {one.name: one for one in (*origin.adapters, *adapters_of(model))}
    return Changes(adapters=tuple(adapters.values()), hooks=hooks_of(model))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside an adapter wrapper."""
    base: Any = getattr(model, "get_base_model", None)
    inner = base() if callable(base) else model
    return inner if isinstance(inner, nn.Module) else model
