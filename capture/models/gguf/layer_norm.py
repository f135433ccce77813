"""Models that normalize by mean and variance: GPT-2, BLOOM, Falcon, StableLM, Nemotron."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnlens.capture.models.gguf.architecture import (
    ATTENTION,
    MLP,
    NORMS,
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
from attnlens.capture.models.gguf.rope import rope_parameters

EPSILON = "attention.layer_norm_epsilon"


def _all_heads(keys: Keys, config: Config) -> None:
    """Return if keys and values have a head for each of the queries'."""
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        raise keys.refuse_key("attention.head_count_kv", f"is not the {config['num_attention_heads']} of queries")
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        raise keys.refuse_key("attention.key_length", "is not the embedding's share of a head")


# GPT-2


def _gpt2(keys: Keys) -> Config:
    config = common(keys, epsilon=EPSILON, norm="layer_norm_epsilon")
    _all_heads(keys, config)
    rows = keys.header.shape("position_embd.weight")[0]
    keys.expect("context_length", [rows])
    return {
        "vocab_size": config["vocab_size"],
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_positions": rows,
        "layer_norm_epsilon": config["layer_norm_epsilon"],
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def _gpt2_rules(_config: Config) -> list[Rule]:
    turned = {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    at = "transformer.h"
    return [
        *ends("transformer.wte", "transformer.ln_f"),
        Rule(("position_embd.weight",), "transformer.wpe.weight"),
        *(
            Rule((f"blk.{{n}}.{theirs}.weight",), f"{at}.{{n}}.{ours}.weight", lambda _config, weight: weight.T)
            for theirs, ours in turned.items()
        ),
        *(rule for rule in blocks(turned, at) if rule.sources[0].endswith(".bias")),
        *blocks({"attn_norm": "ln_1", "ffn_norm": "ln_2"}, at),
    ]


# BLOOM and Falcon, whose queries, keys and values are one matrix, head by head


def _bloom(keys: Keys) -> Config:
    config = common(keys, epsilon=EPSILON, norm="layer_norm_epsilon")
    _all_heads(keys, config)
    keys.expect("attention.max_alibi_bias", [8])
    keys.expect("feed_forward_length", [4 * config["hidden_size"]])
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "seq_length": config["max_position_embeddings"],
        "layer_norm_epsilon": config["layer_norm_epsilon"],
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def _interleaved(config: Config, weight: Any) -> Any:
    """All queries, all keys, all values to groups (key head) of queries, a key and a value each."""
    kv = config["num_key_value_heads"]
    heads = config.get("n_head") or config["num_attention_heads"]
    size = weight.shape[0] // (heads + 2 * kv)
    q, k, v = np.split(weight, [heads * size, (heads + kv) * size])
    parts = [part.reshape(kv, -1, size, *weight.shape[1:]) for part in (q, k, v)]
    return np.concatenate(parts, axis=1).reshape(weight.shape)


def _fused_rules(norms: dict[str, str]) -> list[Rule]:
    at = "transformer.h"
    names = {
        "attn_output": "self_attention.dense",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
        **norms,
    }
    fused = [
        Rule((f"blk.{{n}}.attn_qkv.{kind}",), f"{at}.{{n}}.self_attention.query_key_value.{kind}", _interleaved)
        for kind in ("weight", "bias")
    ]
    return [*ends("transformer.word_embeddings", "transformer.ln_f"), *fused, *blocks(names, at)]


def _bloom_rules(_config: Config) -> list[Rule]:
    first = [
        Rule((f"token_embd_norm.{kind}",), f"transformer.word_embeddings_layernorm.{kind}")
        for kind in ("weight", "bias")
    ]
    return first + _fused_rules({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"})


def _falcon(keys: Keys) -> Config:
    config = common(keys, epsilon=EPSILON, norm="layer_norm_epsilon")
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    if config["head_dim"] * heads != config["hidden_size"]:
        raise keys.refuse_key("attention.key_length", "is not the embedding's share of a head")
    grouped = 1 < kv < heads or has(keys, "attn_norm_2.weight")
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_kv_heads": kv,
        "num_key_value_heads": kv,
        "ffn_hidden_size": config["intermediate_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "layer_norm_epsilon": config["layer_norm_epsilon"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "rope_parameters": rope_parameters(keys, config["head_dim"]),
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": 2 if has(keys, "attn_norm_2.weight") else 1,
        "multi_query": kv == 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": has(keys, "attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
    }


def _falcon_rules(config: Config) -> list[Rule]:
    two = config["num_ln_in_parallel_attn"] == 2
    return _fused_rules({"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"} if two else {"attn_norm": "input_layernorm"})


# StableLM and Nemotron


def _stablelm(keys: Keys) -> Config:
    config = common(keys, epsilon=EPSILON, norm="layer_norm_eps")
    parallel = not has(keys, "ffn_norm.weight")
    keys.expect("use_parallel_residual", [parallel])
    return config | {
        "rope_parameters": rope_parameters(keys, config["head_dim"], partial=True),
        "use_parallel_residual": parallel,
        "use_qkv_bias": has(keys, *ATTENTION_BIASES),
        "qk_layernorm": has(keys, "attn_q_norm.weight"),
    }


def _stablelm_rules(config: Config) -> list[Rule]:
    rules = ends() + blocks({**ATTENTION, **MLP, **NORMS})
    for part, name in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        at = f"model.layers.{{n}}.self_attn.{part}_layernorm.norms"
        targets = tuple(f"{at}.{head}.weight" for head in range(config[name]))
        rules.append(Rule((f"blk.{{n}}.attn_{part}_norm.weight",), targets, lambda _config, weight: tuple(weight)))
    return rules


def _nemotron(keys: Keys) -> Config:
    config = common(keys, epsilon=EPSILON, norm="norm_eps")
    keys.expect("attention.layer_norm_rms_epsilon", [config["norm_eps"]])  # written beside the other, and the same
    return config | {
        "rope_parameters": rope_parameters(keys, config["head_dim"], partial=True),
        "attention_bias": has(keys, *ATTENTION_BIASES),
        "mlp_bias": has(keys, "ffn_up.bias", "ffn_down.bias"),
    }


def _nemotron_rules(_config: Config) -> list[Rule]:
    parts = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    return shifted(ends() + blocks({**ATTENTION, **parts, **NORMS}))


LAYER_NORM = {
    "gpt2": Architecture(model_type="gpt2", config=_gpt2, rules=_gpt2_rules),
    "bloom": Architecture(model_type="bloom", config=_bloom, rules=_bloom_rules),
    "falcon": Architecture(model_type="falcon", config=_falcon, rules=_falcon_rules),
    "stablelm": Architecture(model_type="stablelm", config=_stablelm, rules=_stablelm_rules),
    "nemotron": Architecture(model_type="nemotron", config=_nemotron, rules=_nemotron_rules),
}
