"""GPT-OSS: sinks, windows in every other layer, experts with biases."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnlens.capture.models.gguf.architecture import (
    ATTENTION,
    Architecture,
    Config,
    Rule,
    blocks,
    ends,
    has,
    inner_width,
)
from attnlens.capture.models.gguf.gemma import layer_types
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.llama import ATTENTION_BIASES, plain


def _gpt_oss(keys: Keys) -> Config:
    config = plain(keys)
    rope = config["rope_parameters"]
    keys.expect("rope.freq_base_swa", [rope["rope_theta"]])
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False  # as OpenAI's code has it; files do not say it
    keys.expect("expert_gating_func", [0, 1])
    return config | {
        "intermediate_size": inner_width(keys),
        "sliding_window": int(keys.need("attention.sliding_window")),
        "layer_types": layer_types(keys, config["num_hidden_layers"], 2),
        "num_local_experts": int(keys.need("expert_count")),
        "num_experts_per_tok": int(keys.one("expert_used_count")),
        "attention_bias": has(keys, *ATTENTION_BIASES),
    }


def _gpt_oss_rules(_config: Config) -> list[Rule]:
    at = "model.layers.{n}.mlp.experts"
    gates, ups, downs = "blk.{n}.ffn_gate_exps", "blk.{n}.ffn_up_exps", "blk.{n}.ffn_down_exps"
    names = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    return [
        *ends(),
        *blocks({**ATTENTION, **names, "ffn_gate_inp": "mlp.router"}),
        Rule(("blk.{n}.attn_sinks.weight",), "model.layers.{n}.self_attn.sinks"),
        Rule((f"{gates}.weight", f"{ups}.weight"), f"{at}.gate_up_proj", _alternating),
        Rule((f"{gates}.bias", f"{ups}.bias"), f"{at}.gate_up_proj_bias", _alternating),
        Rule((f"{downs}.weight",), f"{at}.down_proj", lambda _config, weight: weight.swapaxes(1, 2)),
        Rule((f"{downs}.bias",), f"{at}.down_proj_bias"),
    ]


def _alternating(_config: Config, gate: Any, up: Any) -> Any:
    """Gate, up, gate, up … along the inner axis, the last of (expert, width, inner) or (expert, inner)."""
    pair = np.stack([gate, up], axis=2).reshape(gate.shape[0], -1, *gate.shape[2:])
    return pair.swapaxes(1, 2) if pair.ndim == 3 else pair


GPT_OSS = {"gpt-oss": Architecture(model_type="gpt_oss", config=_gpt_oss, rules=_gpt_oss_rules)}
