"""Qwen 2 and 3, with and without experts."""

from __future__ import annotations

from typing import Any

from attnlens.capture.models.gguf.architecture import (
    ATTENTION,
    MLP,
    NORMS,
    QK_NORMS,
    Architecture,
    Config,
    Rule,
    blocks,
    ends,
    experts,
    has,
    inner_width,
)
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.llama import ATTENTION_BIASES, plain


def _qwen2(keys: Keys) -> Config:
    return plain(keys) | {"use_sliding_window": False}


def _qwen3(keys: Keys) -> Config:
    return plain(keys) | {"use_sliding_window": False, "attention_bias": has(keys, *ATTENTION_BIASES)}


def _qwen_rules(config: Config) -> list[Rule]:
    rules = ends() + blocks({**ATTENTION, **MLP, **NORMS, **QK_NORMS})
    return rules + (experts(config) if "num_experts" in config else [])


def _routed(keys: Keys, config: Config, *, normed: bool) -> Config:
    keys.expect("expert_gating_func", [0, 1])
    config |= {
        "num_experts": int(keys.need("expert_count")),
        "num_experts_per_tok": int(keys.one("expert_used_count")),
        "norm_topk_prob": bool(keys.get("expert_weights_norm", normed)),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return config | {"moe_intermediate_size": inner_width(keys)}


def _qwen2_moe(keys: Keys) -> Config:
    config = _routed(keys, _qwen2(keys), normed=False)
    config["shared_expert_intermediate_size"] = keys.header.shape("blk.0.ffn_up_shexp.weight")[0]
    keys.expect("expert_shared_feed_forward_length", [config["shared_expert_intermediate_size"]])
    keys.expect("expert_shared_count", [0, 1])
    return config


def _qwen2_moe_rules(config: Config) -> list[Rule]:
    return [*_qwen_rules(config), *shared_expert()]


def shared_expert() -> list[Rule]:
    """The expert that every token goes to, and its gate, a vector."""
    parts = {"ffn_gate_shexp": "gate_proj", "ffn_up_shexp": "up_proj", "ffn_down_shexp": "down_proj"}
    gate = Rule(("blk.{n}.ffn_gate_inp_shexp.weight",), "model.layers.{n}.mlp.shared_expert_gate.weight", _row)
    return [*blocks({theirs: f"mlp.shared_expert.{ours}" for theirs, ours in parts.items()}), gate]


def _row(_config: Config, weight: Any) -> Any:
    return weight.reshape(1, -1)


def _qwen3_moe(keys: Keys) -> Config:
    return _routed(keys, _qwen3(keys), normed=True)


QWEN = {
    "qwen2": Architecture(model_type="qwen2", config=_qwen2, rules=_qwen_rules),
    "qwen2moe": Architecture(model_type="qwen2_moe", config=_qwen2_moe, rules=_qwen2_moe_rules),
    "qwen3": Architecture(model_type="qwen3", config=_qwen3, rules=_qwen_rules),
    "qwen3moe": Architecture(model_type="qwen3_moe", config=_qwen3_moe, rules=_qwen_rules),
}
