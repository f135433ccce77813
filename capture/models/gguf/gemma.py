"""Gemma 2 and 3."""

from __future__ import annotations

from typing import Any

from attnlens.capture.models.gguf.architecture import (
    ATTENTION,
    MLP,
    QK_NORMS,
    Architecture,
    Config,
    Rule,
    blocks,
    common,
    ends,
    has,
    shifted,
)
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.llama import ATTENTION_BIASES
from attnlens.capture.models.gguf.rope import rope_parameters, rope_tensors

PER_HEAD = {"gemma2": {46}, "gemma3": {62}}
"""Numbers of layers of models whose scores are scaled by the embedding's share of a head."""
BY_SIZE = {"gemma2": {26, 42}, "gemma3": {18, 26, 34, 48}}
"""Numbers of layers of models whose scores are scaled by the features of a head."""


def _scalar(keys: Keys, config: Config) -> int | float:
    """What scores are divided by the root of. Files do not say it; llama.cpp knows it by the number of layers.

    Raises:
        ModelError: the file does not say it, and the number of layers is none of Google's models.
    """
    layers, scale = config["num_hidden_layers"], keys.get("attention.scale", 0)
    if scale:
        value = float(scale) ** -2
        return round(value) if abs(value - round(value)) < 1e-5 * value else value
    if layers in PER_HEAD[keys.architecture]:
        return int(config["hidden_size"] // config["num_attention_heads"])
    if layers in BY_SIZE[keys.architecture]:
        return int(config["head_dim"])
    raise keys.refuse(
        f"it has no key {keys.architecture}.attention.scale, and {layers} layers are none of Google's models, whose "
        "scale is known"
    )


def layer_types(keys: Keys, layers: int, period: int) -> list[str]:
    """Which layers see a window only: all but each `period`-th, or as the key says."""
    pattern = keys.get("attention.sliding_window_pattern", period)
    if not isinstance(pattern, list):
        pattern = [pattern == 0 or index % pattern < pattern - 1 for index in range(layers)]
    if len(pattern) != layers:
        raise keys.refuse_key("attention.sliding_window_pattern", f"is not one value for each of {layers} layers")
    return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]


def _gemma(keys: Keys) -> Config:
    config = common(keys, scale=False)
    return config | {
        "query_pre_attn_scalar": _scalar(keys, config),
        "attention_bias": has(keys, *ATTENTION_BIASES),
    }


def _gemma2(keys: Keys) -> Config:
    config = _gemma(keys)
    rope = rope_parameters(keys, config["head_dim"])
    keys.expect("rope.freq_base_swa", [rope["rope_theta"]])
    return config | {
        "rope_parameters": rope,
        "sliding_window": int(keys.get("attention.sliding_window", 4096)),
        "layer_types": layer_types(keys, config["num_hidden_layers"], 2),
        "attn_logit_softcapping": keys.get("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": keys.get("final_logit_softcapping", 30.0) or None,
    }


def _gemma3(keys: Keys) -> Config:
    config = _gemma(keys)
    if found := rope_tensors(keys):
        raise keys.refuse(f"it has {found[0]}, and Gemma 3 has two kinds of layers for which it may be meant")
    layers, window = config["num_hidden_layers"], int(keys.get("attention.sliding_window", 0))
    types = layer_types(keys, layers, 6) if window else ["full_attention"] * layers
    local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10000.0))}
    return config | {
        "rope_parameters": {"full_attention": rope_parameters(keys, config["head_dim"]), "sliding_attention": local},
        "sliding_window": window or 4096,
        "layer_types": types,
        "final_logit_softcapping": keys.get("final_logit_softcapping", 0) or None,
    }


def _rules(_config: Config) -> list[Rule]:
    norms: dict[str, Any] = {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    return shifted(ends() + blocks({**ATTENTION, **MLP, **norms, **QK_NORMS}))


GEMMA = {
    "gemma2": Architecture(model_type="gemma2", config=_gemma2, rules=_rules),
    "gemma3": Architecture(model_type="gemma3_text", config=_gemma3, rules=_rules),
}
