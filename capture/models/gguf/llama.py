"""Llama, and models that differ from it in few things: Mistral, Mixtral, Phi-3, StarCoder 2, MiniMax-M2, LFM2."""

from __future__ import annotations

from typing import Any

from attnlens.capture.models.gguf.architecture import (
    ATTENTION,
    NORMS,
    QK_NORMS,
    Architecture,
    Config,
    Rule,
    blocks,
    common,
    dense,
    ends,
    experts,
    has,
    inner_width,
)
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.rope import rope_parameters

ATTENTION_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")


def plain(keys: Keys, **options: Any) -> Config:
    """`common` with rotary embedding."""
    config = common(keys)
    config["rope_parameters"] = rope_parameters(keys, config["head_dim"], **options)
    return config


# Llama, and Mistral and Mixtral, which have the same name


def _llama(keys: Keys) -> Config:
    config = plain(keys)
    biased = has(keys, *ATTENTION_BIASES)
    window = keys.get("attention.sliding_window") or None
    if keys.get("expert_count", 0) > 0:
        if biased:
            raise keys.refuse("it has experts and biases of attention, which no model of transformers' has together")
        keys.expect("expert_gating_func", [0, 1])
        keys.expect("expert_weights_norm", [True])
        routed = {"num_local_experts": keys.need("expert_count"), "num_experts_per_tok": keys.need("expert_used_count")}
        config["intermediate_size"] = inner_width(keys)
        return config | routed | {"model_type": "mixtral", "sliding_window": window}
    mlp_biased = has(keys, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")
    if window is None:
        return config | {"attention_bias": biased, "mlp_bias": mlp_biased}
    if biased or mlp_biased:
        raise keys.refuse_key("attention.sliding_window", "stands beside biases, and Mistral has none")
    return config | {"model_type": "mistral", "sliding_window": window}


def _llama_rules(config: Config) -> list[Rule]:
    turned = {("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads")}
    rules = [rule for rule in dense(config) if not rule.sources[0].startswith(("blk.{n}.attn_q.", "blk.{n}.attn_k."))]
    for name, heads in turned:
        for kind in ("weight", "bias"):
            target = f"model.layers.{{n}}.{ATTENTION[name]}.{kind}"
            rules.append(Rule((f"blk.{{n}}.{name}.{kind}",), target, _halves(heads)))
    if config.get("attention_bias"):  # files of models that have three of the four: the fourth adds nothing
        rules.append(Rule((), "model.layers.{n}.self_attn.o_proj.bias", _zeros))
    return rules + (experts(config) if "num_local_experts" in config else [])


def _halves(heads: str) -> Any:
    """Turned pairs as transformers has them: feature i with i + half. llama.cpp keeps Meta's order, 2i with 2i + 1."""

    def build(config: Config, weight: Any) -> Any:
        pairs = weight.reshape(config[heads], -1, 2, *weight.shape[1:])
        return pairs.swapaxes(1, 2).reshape(weight.shape)

    return build


def _zeros(config: Config) -> Any:
    import numpy as np

    return np.zeros(config["hidden_size"], dtype=np.float32)


# Phi-3, StarCoder 2, MiniMax-M2, LFM2


def _phi3(keys: Keys) -> Config:
    config = plain(keys, partial=True, only_longrope=True)
    config["sliding_window"] = keys.get("attention.sliding_window") or None
    original = keys.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    return config | {"original_max_position_embeddings": int(original)}


def _phi3_rules(_config: Config) -> list[Rule]:
    parts = {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"}
    return ends() + blocks({**parts, "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj", **NORMS})


def _starcoder2(keys: Keys) -> Config:
    config = common(keys, epsilon="attention.layer_norm_epsilon", norm="norm_epsilon")
    rope = rope_parameters(keys, config["head_dim"])
    window = keys.get("attention.sliding_window") or None
    return config | {"rope_parameters": rope, "use_bias": has(keys, *ATTENTION_BIASES), "sliding_window": window}


def _starcoder2_rules(_config: Config) -> list[Rule]:
    return ends() + blocks({**ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj", **NORMS})


def _minimax_m2(keys: Keys) -> Config:
    config = plain(keys, partial=True)
    keys.expect("expert_gating_func", [2])
    keys.expect("expert_weights_norm", [True])
    config["intermediate_size"] = inner_width(keys)
    routed = {"num_local_experts": keys.need("expert_count"), "num_experts_per_tok": keys.one("expert_used_count")}
    return config | routed


def _minimax_m2_rules(config: Config) -> list[Rule]:
    bias = Rule(("blk.{n}.exp_probs_b.bias",), "model.layers.{n}.mlp.e_score_correction_bias")
    return [*ends(), *blocks({**ATTENTION, **NORMS, **QK_NORMS}), *experts(config), bias]


def _lfm2(keys: Keys) -> Config:
    kv = keys.need("attention.head_count_kv")
    if not isinstance(kv, list) or len(set(kv) - {0}) != 1:
        raise keys.refuse_key("attention.head_count_kv", "does not say which layers attend, by one number and zeros")
    config = common(keys, norm="norm_eps", kv_heads=max(kv))
    config["rope_parameters"] = rope_parameters(keys, config["head_dim"])
    return config | {
        "block_auto_adjust_ff_dim": False,  # feed_forward_length is what came of it
        "layer_types": ["full_attention" if count else "conv" for count in kv],
        "conv_L_cache": int(keys.need("shortconv.l_cache")),
        "conv_bias": has(keys, *(f"shortconv.{part}.bias" for part in ("in_proj", "conv", "out_proj"))),
    }


def _lfm2_rules(_config: Config) -> list[Rule]:
    names = {
        **ATTENTION,
        "attn_output": "self_attn.out_proj",
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
        "attn_norm": "operator_norm",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "feed_forward.w1",
        "ffn_up": "feed_forward.w3",
        "ffn_down": "feed_forward.w2",
        "shortconv.in_proj": "conv.in_proj",
        "shortconv.out_proj": "conv.out_proj",
    }
    kernel = Rule(("blk.{n}.shortconv.conv.weight",), "model.layers.{n}.conv.conv.weight", _depthwise)
    bias = Rule(("blk.{n}.shortconv.conv.bias",), "model.layers.{n}.conv.conv.bias")
    norm = Rule(("token_embd_norm.weight",), "model.embedding_norm.weight")  # the last one, in spite of its name
    return [*ends(norm="model.embedding_norm"), norm, *blocks(names), kernel, bias]


def _depthwise(_config: Config, kernel: Any) -> Any:
    """A kernel (width, 1, length) of (width, length)."""
    return kernel[:, None]


LLAMA = {
    "llama": Architecture(model_type="llama", config=_llama, rules=_llama_rules),
    "phi3": Architecture(model_type="phi3", config=_phi3, rules=_phi3_rules),
    "starcoder2": Architecture(model_type="starcoder2", config=_starcoder2, rules=_starcoder2_rules),
    "minimax-m2": Architecture(model_type="minimax_m2", config=_minimax_m2, rules=_minimax_m2_rules),
    "lfm2": Architecture(model_type="lfm2", config=_lfm2, rules=_lfm2_rules),
}
