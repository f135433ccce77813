"""The order, sums and stacks in which llama.cpp's convert_hf_to_gguf writes the parameters of transformers' models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from attnlens.benchmarks.models.gguf_keys import falcon_kv, turned

Named = Iterator[tuple[str, Any]]


def as_they_are(state: Named, _config: Any) -> Named:
    yield from state


def llama_order(state: Named, config: Any) -> Named:
    """Meta's order of turned features in queries and keys, and the factors of Llama 3.1's rope as a tensor."""
    yield from _rope_freqs(config)
    for name, value in split_experts(state, config):
        if ".q_proj." in name or ".k_proj." in name:
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
            yield name, halves.swapaxes(1, 2).reshape(value.shape)
        else:
            yield name, value


def _rope_freqs(config: Any) -> Named:
    """By the formula of Meta's code, in the precision of the converter."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return
    factors = []
    size = turned(config)
    for frequency in np.float32(1.0) / np.float32(rope["rope_theta"]) ** (
        np.arange(0, size, 2, dtype=np.float32) / size
    ):
        length = 2 * math.pi / float(frequency)
        low, high, context = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        if length < context / high:
            factors.append(1.0)
        elif length > context / low:
            factors.append(rope["factor"])
        else:
            smooth = (context / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    yield "rope_freqs.weight", np.array(factors, dtype=np.float32)


def split_experts(state: Named, _config: Any) -> Named:
    """Gates and ups, which transformers has in one stack (expert, 2 · inner, width)."""
    for name, value in state:
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(value, 2, axis=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", value
        elif name.endswith("shared_expert_gate.weight"):
            yield name, value.reshape(-1)
        elif name.endswith("e_score_correction_bias"):
            yield f"blk.{name.split('.')[2]}.exp_probs_b.bias", value
        else:
            yield name, value


def qwen35_tensors(state: Named, config: Any) -> Named:
    """Heads of values in tiles, one of each head of keys, along rows or, in what reads them, columns."""
    heads, size = config.linear_num_key_heads, config.linear_value_head_dim
    before = 2 * config.linear_key_head_dim * heads

    def tiled(value: Any, width: int) -> Any:
        return value.reshape(heads, -1, width, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)

    for name, value in split_experts(state, config):
        if name.endswith((".in_proj_qkv.weight", ".conv1d.weight")):
            flat = value.reshape(value.shape[0], -1)
            yield name, np.concatenate([flat[:before], tiled(flat[before:], size)])
        elif name.endswith(".in_proj_z.weight"):
            yield name, tiled(value, size)
        elif name.endswith((".in_proj_a.weight", ".in_proj_b.weight")):
            yield name, tiled(value, 1)
        elif name.endswith(".A_log"):
            yield name, -np.exp(tiled(value, 1))
        elif name.endswith(".dt_bias"):
            yield name.replace(".dt_bias", ".dt_proj.bias"), tiled(value, 1)
        elif name.endswith("linear_attn.out_proj.weight"):
            yield name, tiled(value.T, size).T
        elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            yield name, value + 1
        else:
            yield name, value


def phi3_tensors(state: Named, config: Any) -> Named:
    rope = config.rope_parameters
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32)
    yield from state


def norms_plus_one(state: Named, _config: Any) -> Named:
    for name, value in state:
        yield name, value + 1 if name.endswith("norm.weight") else value


def gemma4_tensors(state: Named, config: Any) -> Named:
    size = config.per_layer_config[config.layer_types.index("full_attention")].head_dim
    turned = int(size * config.rope_parameters["full_attention"]["partial_rotary_factor"] / 2)
    yield "rope_freqs.weight", np.array([1.0] * turned + [1e30] * (size // 2 - turned))
    for name, value in state:
        layer = name.split(".")[2]
        if name.endswith("layer_scalar"):
            yield f"{name}.weight", value
        elif name.endswith("router.scale"):
            yield f"blk.{layer}.ffn_gate_inp.scale", value
        elif name.endswith("per_expert_scale"):
            yield f"blk.{layer}.ffn_down_exps.scale", value
        elif ".experts." in name:
            yield f"{name}.weight", value
        else:
            yield name, value


def stablelm_tensors(state: Named, _config: Any) -> Named:
    """The norms of heads, stacked."""
    stacks: dict[str, list[Any]] = {}
    for name, value in state:
        if "layernorm.norms." in name:
            stacks.setdefault(name.split(".norms.")[0] + ".weight", []).append(value)
        else:
            yield name, value
    for name, values in stacks.items():
        yield name, np.stack(values)


def gpt2_tensors(state: Named, _config: Any) -> Named:
    for name, value in state:
        turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        yield name, value.T if turned else value


def bloom_tensors(state: Named, config: Any) -> Named:
    heads = config.num_attention_heads
    for full, value in state:
        name = full.removeprefix("transformer.")
        if "query_key_value" in name:
            parts = value.reshape(heads, 3, -1, *value.shape[1:])
            yield name, np.concatenate([parts[:, i].reshape(-1, *value.shape[1:]) for i in range(3)])
        else:
            yield name, value


def falcon_tensors(state: Named, config: Any) -> Named:
    heads, kv = config.num_attention_heads, falcon_kv(config)
    for name, value in state:
        if "query_key_value" in name:
            groups = value.reshape(kv, heads // kv + 2, -1, *value.shape[1:])
            parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
            yield name, np.concatenate([part.reshape(-1, *value.shape[1:]) for part in parts])
        else:
            yield name, value


def gpt_oss_tensors(state: Named, _config: Any) -> Named:
    for name, value in state:
        if name.endswith("sinks"):
            yield f"{name}.weight", value
        elif name.endswith("gate_up_proj_bias"):
            yield name.replace("gate_up_proj_bias", "gate_proj.bias"), value[:, ::2]
            yield name.replace("gate_up_proj_bias", "up_proj.bias"), value[:, 1::2]
        elif name.endswith("gate_up_proj"):
            turned = value.swapaxes(1, 2)
            yield name.replace("gate_up_proj", "gate_proj.weight"), turned[:, ::2]
            yield name.replace("gate_up_proj", "up_proj.weight"), turned[:, 1::2]
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", value.swapaxes(1, 2)
        elif name.endswith("down_proj_bias"):
            yield name.replace("down_proj_bias", "down_proj.bias"), value
        else:
            yield name, value


def lfm2_tensors(state: Named, _config: Any) -> Named:
    for name, value in state:
        yield name, value.squeeze(1) if name.endswith("conv.conv.weight") else value
