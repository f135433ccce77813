"""Gemma 4: two kinds of heads, embeddings for each layer, keys that later layers share, experts beside the rest."""

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
    ends,
    has,
    inner_width,
    stacked_pair,
    vocabulary,
)
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.rope import FREQS

SHARED = "of layers that take keys and values of an earlier one"
RENAMED = frozenset({"global_head_dim", "num_global_key_value_heads"})
"""They become a configuration for each layer; wrong ones would not fit the tensors."""
UNTURNED = 1e20
"""A divisor of this size stands for a pair that is not turned; llama.cpp's converter writes 1e30."""


def _gemma4(keys: Keys) -> Config:
    layers = int(keys.need("block_count"))
    types = _layer_types(keys, layers)
    shared = int(keys.get("attention.shared_kv_layers", 0))
    size, windowed = int(keys.need("attention.key_length")), int(keys.need("attention.key_length_swa"))
    keys.expect("attention.value_length", [size])
    keys.expect("attention.value_length_swa", [windowed])
    keys.expect("attention.scale", [0, 1])
    kv, full_kv = _by_type(keys, "attention.head_count_kv", types)
    unnamed = [n for n, kind in enumerate(types) if f"blk.{n}.attn_v.weight" not in keys.header.tensors]
    values_are_keys = any(types[n] == "full_attention" for n in unnamed if n < layers - shared)
    if kv != full_kv and not values_are_keys:
        raise keys.refuse_key(
            "attention.head_count_kv", "differs from layer to layer, which transformers cannot do here"
        )
    config: Config = {
        "vocab_size": vocabulary(keys),
        "hidden_size": int(keys.need("embedding_length")),
        "num_hidden_layers": layers,
        "num_attention_heads": int(keys.one("attention.head_count")),
        "num_key_value_heads": kv,
        "num_global_key_value_heads": full_kv if values_are_keys else None,
        "head_dim": windowed,
        "global_head_dim": size,
        "attention_k_eq_v": values_are_keys,
        "num_kv_shared_layers": shared,
        "layer_types": types,
        "sliding_window": int(keys.need("attention.sliding_window")),
        "max_position_embeddings": int(keys.need("context_length")),
        "rms_norm_eps": float(keys.need("attention.layer_norm_rms_epsilon")),
        "final_logit_softcapping": keys.get("final_logit_softcapping", 0) or None,
        "tie_word_embeddings": "output.weight" not in keys.header.tensors,
        "rope_parameters": _rope(keys, size, windowed),
    }
    return config | _widths(keys, layers, shared) | _own_embedding(keys, config) | _routed(keys)


def _layer_types(keys: Keys, layers: int) -> list[str]:
    pattern = keys.need("attention.sliding_window_pattern")
    if not isinstance(pattern, list) or len(pattern) != layers or pattern[-1]:
        raise keys.refuse_key(
            "attention.sliding_window_pattern",
            f"does not say of each of {layers} layers, the last a full one, its kind",
        )
    return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]


def _by_type(keys: Keys, name: str, types: list[str]) -> tuple[int, int]:
    """A number for layers with a window, and one for those without."""
    value = keys.need(name)
    values = value if isinstance(value, list) else [value] * len(types)
    found = {kind: {v for v, other in zip(values, types, strict=True) if other == kind} for kind in types}
    if any(len(numbers) != 1 for numbers in found.values()):
        raise keys.refuse_key(name, "differs between layers of one kind")
    full = found["full_attention"].pop()
    return (found["sliding_attention"].pop() if "sliding_attention" in found else full), full


def _rope(keys: Keys, size: int, windowed: int) -> dict[str, Any]:
    """Full layers turn the first pairs only, by frequencies of the whole head."""
    keys.expect("rope.dimension_count", [size])
    keys.expect("rope.dimension_count_swa", [windowed])
    keys.expect("rope.scaling.type", ["none"])
    keys.tensors.add(FREQS)
    divisors = keys.header.read(FREQS) if FREQS in keys.header.tensors else None
    turned = size // 2
    if divisors is not None:
        turned = int((divisors == 1).sum())
        if divisors.shape != (size // 2,) or (divisors[:turned] != 1).any() or (divisors[turned:] < UNTURNED).any():
            raise keys.refuse(f"the tensor {FREQS} is not ones, and then divisors that stand for no turn")
    full = {"rope_type": "proportional", "rope_theta": float(keys.get("rope.freq_base", 10000.0))}
    local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10000.0))}
    return {"full_attention": full | {"partial_rotary_factor": 2 * turned / size}, "sliding_attention": local}


def _widths(keys: Keys, layers: int, shared: int) -> Config:
    """Layers that share keys may be twice as wide."""
    value = keys.need("feed_forward_length")
    values = value if isinstance(value, list) else [value] * layers
    double = shared > 0 and values[-1] == 2 * values[0]
    if values != [values[0]] * (layers - shared) + [values[0] * (1 + double)] * shared:
        raise keys.refuse_key("feed_forward_length", "differs from layer to layer, which transformers cannot do here")
    return {"intermediate_size": int(values[0]), "use_double_wide_mlp": double}


def _own_embedding(keys: Keys, config: Config) -> Config:
    """Embeddings that each layer gets anew."""
    width = int(keys.get("embedding_length_per_layer_input", 0))
    rows = keys.header.shape("per_layer_token_embd.weight")[0] if width else config["vocab_size"]
    return {"hidden_size_per_layer_input": width, "vocab_size_per_layer_input": rows}


def _routed(keys: Keys) -> Config:
    routed = has(keys, "ffn_gate_inp.weight")
    if not routed:
        return {"enable_moe_block": False}
    keys.expect("expert_gating_func", [0, 1])
    keys.expect("expert_weights_norm", [True])
    return {
        "enable_moe_block": True,
        "num_experts": int(keys.need("expert_count")),
        "top_k_experts": int(keys.one("expert_used_count")),
        "moe_intermediate_size": inner_width(keys),
    }


def _rules(config: Config) -> list[Rule]:
    at = "model.layers.{n}"
    names = {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "inp_gate": "per_layer_input_gate",
        "proj": "per_layer_projection",
        "post_norm": "post_per_layer_input_norm",
        "ffn_gate_inp": "router.proj",
        "post_ffw_norm_1": "post_feedforward_layernorm_1",
        "post_ffw_norm_2": "post_feedforward_layernorm_2",
        "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    }
    gate_up = f"{at}.experts.gate_up_proj"
    return [
        *ends(),
        Rule(("per_layer_token_embd.weight",), "model.embed_tokens_per_layer.weight"),
        Rule(("per_layer_model_proj.weight",), "model.per_layer_model_projection.weight"),
        Rule(("per_layer_proj_norm.weight",), "model.per_layer_projection_norm.weight"),
        *blocks({**ATTENTION, **MLP, **QK_NORMS, **names}),
        Rule(("blk.{n}.layer_output_scale.weight",), f"{at}.layer_scalar"),
        Rule(("blk.{n}.ffn_gate_inp.scale",), f"{at}.router.scale"),
        Rule(("blk.{n}.ffn_down_exps.scale",), f"{at}.router.per_expert_scale"),
        Rule(("blk.{n}.ffn_gate_up_exps.weight",), gate_up),
        Rule(("blk.{n}.ffn_gate_exps.weight", "blk.{n}.ffn_up_exps.weight"), gate_up, stacked_pair),
        Rule(("blk.{n}.ffn_down_exps.weight",), f"{at}.experts.down_proj"),
    ]


def _unread(config: Config, name: str) -> bool:
    """Keys and values of layers that take those of an earlier one: in files, but nobody's."""
    first = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    parts = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
    return name in {f"blk.{n}.{part}" for n in range(first, config["num_hidden_layers"]) for part in parts}


GEMMA4 = {
    "gemma4": Architecture(
        model_type="gemma4_text", config=_gemma4, rules=_rules, unread=_unread, why_unread=SHARED, renamed=RENAMED
    )
}
