"""Rotary frequencies that change with the length of a text: a capture begins with those of a short one.

transformers keeps dynamic NTK's frequencies in the model, where they stay grown until a text comes that is shorter than
the original context: a text in between would be computed with what another one left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_CACHED, _ORIGINAL, _CURRENT = "max_seq_len_cached", "original_inv_freq", "inv_freq"


def reset_rope(model: nn.Module) -> None:
    """Puts every dynamic rope back to its original frequencies, as transformers' `dynamic_rope_update` does itself."""
    for module in model.modules():
        first = getattr(module, "original_max_seq_len", None)
        if first is None:
            continue
        for name in [name for name in vars(module) if name.endswith(_CACHED)]:
            prefix = name.removesuffix(_CACHED)
            original = getattr(module, prefix + _ORIGINAL, None)
            if original is not None and getattr(module, name) != first:
                original = original.to(getattr(module, prefix + _CURRENT).device)
                module.register_buffer(prefix + _CURRENT, original, persistent=False)
                setattr(module, name, first)


def turns_at(config: object) -> int | None:
    """The token at which a text that grows gets other frequencies than it had; None where frequencies stay.

    The lengths are those of transformers' `dynamic_rope_update`. A text that is given as a whole has the frequencies
    of its length at all tokens, so its rows are others.
    """
    turns = []
    for kind, rope in _ropes(config):
        length = None
        if kind == "longrope" and rope.get("short_factor") != rope.get("long_factor"):
            name = "original_max_position_embeddings"
            length = rope.get(name, getattr(config, name, None))
        elif kind == "dynamic":
            length = getattr(config, "max_position_embeddings", None)
        if isinstance(length, int):
            turns.append(length)
    return min(turns, default=None)


def rope_of(config: object) -> str | None:
    """What a configuration says of a rope that is made for longer texts, for people."""
    for kind, rope in _ropes(config):
        factor = rope.get("factor")
        return f"rope {kind}" + (f" with factor {factor:g}" if isinstance(factor, int | float) else "")
    return None


def _ropes(config: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ropes that are made for longer texts, with their types: one, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return
    for rope in (parameters, *(part for part in parameters.values() if isinstance(part, dict))):
        kind = rope.get("rope_type", rope.get("type"))
        if kind not in (None, "default"):
            yield str(kind), rope
