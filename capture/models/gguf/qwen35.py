"""Qwen 3.5: layers of gated delta rule, and full attention in some; with and without experts."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    experts,
    inner_width,
    shifted,
)
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.qwen import shared_expert
from attnlens.capture.models.gguf.rope import rope_parameters

GUESSES = "of layers that guess several tokens ahead"
AHEAD = "mtp_num_hidden_layers"
"""Layers after the model's own that guess several tokens ahead; transformers leaves them out of checkpoints, too."""


def _qwen35(keys: Keys) -> Config:
    config = common(keys)
    ahead = int(keys.get("nextn_predict_layers", 0))
    layers = config["num_hidden_layers"] - ahead
    _require_guesses(keys, range(layers, layers + ahead))
    rope = rope_parameters(keys, config["head_dim"], partial=True)
    rope.setdefault("partial_rotary_factor", 1.0)
    sections = keys.get("rope.dimension_sections")
    if sections is not None:  # pairs for each axis of a picture, in turn; in a text all axes say the same
        pairs = round(rope["partial_rotary_factor"] * config["head_dim"]) // 2
        if len(sections) < 3 or any(pair >= 3 * sections[pair % 3] for pair in range(pairs)):
            raise keys.refuse_key("rope.dimension_sections", f"leaves some of {pairs} pairs without an axis")
        rope |= {"mrope_section": list(sections[:3]), "mrope_interleaved": True}
    values = int(keys.need("ssm.time_step_rank"))
    return config | {
        "num_hidden_layers": layers,
        AHEAD: ahead,
        "layer_types": _layer_types(keys, layers, ahead),
        "rope_parameters": rope,
        "linear_conv_kernel_dim": int(keys.need("ssm.conv_kernel")),
        "linear_key_head_dim": int(keys.need("ssm.state_size")),
        "linear_num_key_heads": int(keys.need("ssm.group_count")),
        "linear_num_value_heads": values,
        "linear_value_head_dim": int(keys.need("ssm.inner_size")) // values,
    }


def _require_guesses(keys: Keys, layers: range) -> None:
    """Return if these layers guess ahead: they join two streams, which a decoder layer does not."""
    for layer in layers:
        there = any(name.startswith(f"blk.{layer}.") for name in keys.header.tensors)
        if there and f"blk.{layer}.nextn.eh_proj.weight" not in keys.header.tensors:
            raise keys.refuse_key("nextn_predict_layers", f"means layer {layer}, which has no nextn.eh_proj.weight")


def _layer_types(keys: Keys, layers: int, ahead: int) -> list[str]:
    interval = int(keys.get("full_attention_interval", 4))
    recurrent = keys.get(
        "attention.recurrent_layers", [(n + 1) % interval != 0 for n in range(layers)] + [False] * ahead
    )
    if not isinstance(recurrent, list) or len(recurrent) != layers + ahead:
        raise keys.refuse_key("attention.recurrent_layers", f"is not one value for each of {layers + ahead} layers")
    return ["linear_attention" if each else "full_attention" for each in recurrent[:layers]]


def _qwen35moe(keys: Keys) -> Config:
    keys.expect("expert_gating_func", [0, 1])
    keys.expect("expert_weights_norm", [True])
    routed = {
        "num_experts": int(keys.need("expert_count")),
        "num_experts_per_tok": int(keys.one("expert_used_count")),
        "moe_intermediate_size": inner_width(keys),
        "shared_expert_intermediate_size": keys.header.shape("blk.0.ffn_up_shexp.weight")[0],
    }
    keys.expect("expert_shared_feed_forward_length", [routed["shared_expert_intermediate_size"]])
    keys.expect("expert_shared_count", [0, 1])
    return _qwen35(keys) | routed


def _grouped(config: Config, weight: Any, size: int) -> Any:
    """Heads of values beside the head of keys that they share, along the first axis; llama.cpp has first ones first."""
    heads = config["linear_num_key_heads"]
    tiled = weight.reshape(-1, heads, size, *weight.shape[1:])
    return tiled.swapaxes(0, 1).reshape(weight.shape)


def _last_rows(config: Config, weight: Any) -> Any:
    """The rows of values, which follow those of queries and keys."""
    before = 2 * config["linear_key_head_dim"] * config["linear_num_key_heads"]
    values = _grouped(config, weight[before:], config["linear_value_head_dim"])
    return np.concatenate([weight[:before], values])


def _rules(config: Config) -> list[Rule]:
    at = "model.layers.{n}.linear_attn"
    size = config["linear_value_head_dim"]
    norms = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    rules = [
        *shifted(ends() + blocks({**norms, **QK_NORMS})),
        *blocks({**ATTENTION, **MLP, "ssm_norm": "linear_attn.norm"}),
        Rule(("blk.{n}.attn_qkv.weight",), f"{at}.in_proj_qkv.weight", _last_rows),
        Rule(("blk.{n}.attn_gate.weight",), f"{at}.in_proj_z.weight", lambda c, w: _grouped(c, w, size)),
        Rule(("blk.{n}.ssm_alpha.weight",), f"{at}.in_proj_a.weight", lambda c, w: _grouped(c, w, 1)),
        Rule(("blk.{n}.ssm_beta.weight",), f"{at}.in_proj_b.weight", lambda c, w: _grouped(c, w, 1)),
        Rule(("blk.{n}.ssm_dt.bias",), f"{at}.dt_bias", lambda c, w: _grouped(c, w, 1)),
        Rule(("blk.{n}.ssm_a",), f"{at}.A_log", lambda c, w: _grouped(c, np.log(-w.reshape(-1)), 1)),
        Rule(("blk.{n}.ssm_conv1d.weight",), f"{at}.conv1d.weight", lambda c, w: _last_rows(c, w)[:, None]),
        Rule(("blk.{n}.ssm_out.weight",), f"{at}.out_proj.weight", lambda c, w: _grouped(c, w.T, size).T),
    ]
    return rules + ([*experts(config), *shared_expert()] if "num_experts" in config else [])


def _unread(config: Config, name: str) -> bool:
    """Of the layers that guess ahead."""
    part = name.split(".")
    first = config["num_hidden_layers"]
    return part[0] == "blk" and part[1].isdecimal() and first <= int(part[1]) < first + config[AHEAD]


QWEN35 = {
    "qwen35": Architecture(model_type="qwen3_5_text", config=_qwen35, rules=_rules, unread=_unread, why_unread=GUESSES),
    "qwen35moe": Architecture(
        model_type="qwen3_5_moe_text", config=_qwen35moe, rules=_rules, unread=_unread, why_unread=GUESSES
    ),
}
