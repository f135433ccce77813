"""A model's configuration of its text part, which composite models keep inside another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from attnlens.schemas.errors import ModelError


def text_config(model: nn.Module) -> Any:
    """The text configuration of a model; None for a model that has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


REFUSED_LAYERS: Mapping[str, str] = {
    "compressed_sparse_attention": "keys that stand for several tokens each",
    "heavily_compressed_attention": "keys that stand for several tokens each",
}
"""Layer types, as configurations name them, whose attention is not over tokens once a text is long enough."""


def refuse_configuration(config: Any, name: str) -> None:
    """Refuses what a configuration alone shows can not be captured; `name` is the model's class.

    Raises:
        ModelError: an encoder-decoder, or layers whose key axis is not the tokens of the text.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; attnlens captures decoder-only models")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for index, kind in enumerate(getattr(text, "layer_types", None) or ()):
        if kind in REFUSED_LAYERS:
            raise ModelError(
                f"{name}: layer {index} is of type {kind}, with {REFUSED_LAYERS[kind]}; its rows are not over the "
                "tokens of the text, so it cannot be captured"
            )


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
