"""A model's configuration of its text part, which composite models keep inside another."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_config(model: nn.Module) -> Any:
    """The text configuration of a model; None for a model that has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def config_numbers(model: nn.Module) -> dict[str, float]:
    """The numbers in the text configuration of a model, by name."""
    config = text_config(model)
    if config is None:
        return {}
    return {
        name: float(value)
        for name, value in config.to_dict().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
