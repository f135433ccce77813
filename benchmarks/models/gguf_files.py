"""Writes a small model as a GGUF file, in the layout of llama.cpp's convert_hf_to_gguf: names, orders, sums, keys.

Names of tensors are those of the package gguf. Nothing here knows how attnlens reads a file, so that the two do not
share a mistake; `llamacpp` compares the files with llama.cpp itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Named = Iterator[tuple[str, Any]]


class NotWritableError(Exception):
    """A setting of the model has no place in a GGUF file."""


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any = None,
    *,
    quantized: str | None = None,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
) -> None:
    """Write `model` to `path`.

    Args:
        path: the file, which is overwritten.
        model: one of transformers' causal language models whose type is in `WRITERS`.
        tokenizer: a byte-level one; without it the file has the model's vocabulary only in its shapes.
        quantized: ggml's name of the type of matrices whose rows are whole blocks; float32 otherwise.
        keys: more keys, or others in the place of some, by their full names: strings, numbers, truth values or lists of
            these; None leaves one out.
        tensors: more tensors, by their full names.
        drop: endings of names of tensors that are left out.

    Raises:
        NotWritableError: the model has a setting that llama.cpp's format has no place for.
    """
    import gguf

    kind = model.config.model_type
    if kind not in WRITERS:
        raise NotWritableError(f"llama.cpp's converter for {kind} is not known here")
    architecture, describe, arrange = WRITERS[kind]
    writer = gguf.GGUFWriter(str(path), architecture)
    describe(writer, model.config)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    for name, value in (keys or {}).items():
        writer.kv_data[0].pop(name, None)
        if value is not None:
            _add_key(writer, name, value)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    for source, value in arrange(_state(model, tied=tied), model.config):
        target = source if source.endswith(VERBATIM) else names.get_name(source, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise NotWritableError(f"gguf has no name for {source} of {kind}")
        if target.endswith(drop):
            continue
        kind_of = gguf.GGMLQuantizationType[quantized] if quantized else None
        if kind_of is not None and value.ndim > 1 and value.shape[-1] % 32 == 0:
            writer.add_tensor(target, gguf.quants.quantize(value, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(target, np.ascontiguousarray(value, dtype=np.float32))
    for target, value in (tensors or {}).items():
        writer.add_tensor(target, np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


VERBATIM = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "exp_probs_b.bias",
    "_inp.scale",
    "_exps.scale",
)


def _state(model: Any, *, tied: bool) -> Named:
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor.float().numpy()


def _add_key(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _add_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    """A byte-level vocabulary. The rows of the embedding that no token has are called [PADn]."""
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    special = set(tokenizer.all_special_ids)
    types = [3 if index in special else 1 for index in range(len(pieces))]
    merges = [" ".join(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    if not merges and len(pieces) < size:  # a file needs one: of bytes that no text has
        pieces, types, merges = [*pieces, "ÿÿ"], [*types, 1], ["ÿ ÿ"]
    pieces += [f"[PAD{index}]" for index in range(len(pieces), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types(types + [5] * (size - len(types)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


# Keys


def _no(config: Any, **settings: Any) -> None:
    """Return if the configuration has these values, for which there are no keys."""
    for name, value in settings.items():
        found = getattr(config, name, value)
        if found != value and not (not found and not value):
            raise NotWritableError(f"llama.cpp's keys have no place for {name} = {found}")


def _text_keys(writer: Any, config: Any, *, rope: bool = True) -> None:
    """What the converter writes for every model."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    if (kv := getattr(config, "num_key_value_heads", None)) is not None:
        writer.add_head_count_kv(kv)
    if (size := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(size)
        writer.add_value_length(size)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if (epsilon := getattr(config, name, None)) is not None:
            writer.add_layer_norm_eps(epsilon)
    if rope:
        _rope_keys(writer, config.rope_parameters)


def _rope_keys(writer: Any, rope: dict[str, Any]) -> None:
    import gguf

    full = rope.get("full_attention", rope)
    kind = full.get("rope_type", "default")
    writer.add_rope_freq_base(full["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(full["factor"])
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
        for name, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if full.get(name) is not None:
                add(full[name])
    elif kind not in {"default", "llama3", "longrope"}:
        raise NotWritableError(f"llama.cpp's keys have no place for a rope of type {kind}")
    if "sliding_attention" in rope:
        _no_scaling(rope["sliding_attention"])
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])


def _no_scaling(rope: dict[str, Any]) -> None:
    if rope.get("rope_type", "default") != "default":
        raise NotWritableError("llama.cpp's keys have no place for the scaled rope of layers with a window")


def _turned(config: Any) -> int:
    """Features of a head that are turned."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size * config.rope_parameters.get("partial_rotary_factor", 1.0))


def _llama_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    _text_keys(writer, config)
    if getattr(config, "sliding_window", None):  # the converter drops it, and with it what the model computes
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_turned(config))
    if hasattr(config, "num_local_experts"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def _qwen_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu", use_sliding_window=False, decoder_sparse_step=1, mlp_only_layers=[])
    _text_keys(writer, config)
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if hasattr(config, "shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
        if config.norm_topk_prob != (config.model_type == "qwen3_moe"):  # what llama.cpp takes for granted
            writer.add_expert_weights_norm(config.norm_topk_prob)


def _qwen35_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    _text_keys(writer, config)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_array(
        f"{writer.arch}.attention.recurrent_layers",
        [kind == "linear_attention" for kind in config.layer_types],
    )
    writer.add_rope_dimension_count(_turned(config))
    sections = list(config.rope_parameters.get("mrope_section", [11, 11, 10]))
    writer.add_rope_dimension_sections([*sections, 0, 0, 0][:4])
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _phi3_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    rope = config.rope_parameters
    original = rope.get("original_max_position_embeddings", config.original_max_position_embeddings)
    _text_keys(writer, config)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(_turned(config))
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / original
        usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or usual)


def _starcoder2_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="gelu_pytorch_tanh")
    _text_keys(writer, config)
    if config.sliding_window:  # as above
        writer.add_sliding_window(config.sliding_window)


def _stablelm_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    _text_keys(writer, config)
    writer.add_rope_dimension_count(_turned(config))
    writer.add_parallel_residual(config.use_parallel_residual)


def _nemotron_keys(writer: Any, config: Any) -> None:
    import gguf

    _no(config, hidden_act="relu2")
    _text_keys(writer, config, rope=False)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_turned(config))
    _no_scaling(config.rope_parameters)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _gpt2_keys(writer: Any, config: Any) -> None:
    _no(config, activation_function="gelu_new", scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True)
    _text_keys(writer, config, rope=False)


def _bloom_keys(writer: Any, config: Any) -> None:
    _no(config, apply_residual_connection_post_layernorm=False)
    writer.add_context_length(getattr(config, "seq_length", None) or config.hidden_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _falcon_keys(writer: Any, config: Any) -> None:
    _no(config, alibi=False, parallel_attn=True, activation="gelu", bias=False)
    writer.add_context_length(2048)
    writer.add_tensor_data_layout("jploski")
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(_falcon_kv(config))
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if config.rope_parameters["rope_theta"] != 10000.0:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _no_scaling(config.rope_parameters)


def _falcon_kv(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _gemma_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=False)
    _text_keys(writer, config)
    second = config.model_type == "gemma2"
    if second or "sliding_attention" in config.layer_types:
        writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping is not None:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    period = 2 if second else 6
    usual = [
        "sliding_attention" if (index + 1) % period else "full_attention" for index in range(config.num_hidden_layers)
    ]
    if "sliding_attention" in config.layer_types and config.layer_types != usual:
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    # the converter does not write it; llama.cpp knows it for Google's own models by their number of layers
    writer.add_attention_scale(config.query_pre_attn_scalar**-0.5)


def _gemma4_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=None, attention_bias=False)
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    full_layer, layer = (config.per_layer_config[sliding.index(kind)] for kind in (False, True))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(full_layer.head_dim)
    writer.add_rope_dimension_count_swa(layer.head_dim)
    writer.add_key_length(full_layer.head_dim)
    writer.add_value_length(full_layer.head_dim)
    writer.add_key_length_swa(layer.head_dim)
    writer.add_value_length_swa(layer.head_dim)
    kv = [(layer if windowed else full_layer).num_key_value_heads for windowed in sliding]
    writer.add_head_count_kv(kv if len(set(kv)) > 1 else kv[0])
    shared = config.num_kv_shared_layers
    wide = 2 if config.use_double_wide_mlp else 1
    inner = [config.intermediate_size] * (config.num_hidden_layers - shared) + [
        config.intermediate_size * wide
    ] * shared
    writer.add_feed_forward_length(inner if len(set(inner)) > 1 else inner[0])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input or 0)
    writer.add_sliding_window_pattern(sliding)
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _gpt_oss_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu", swiglu_alpha=1.702, swiglu_limit=7.0)
    rope = config.rope_parameters
    if rope["rope_type"] == "yarn" and rope.get("truncate", True):
        raise NotWritableError("llama.cpp's keys have no place for the truncate of GPT-OSS's rope")
    _text_keys(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    usual = ["sliding_attention" if (index + 1) % 2 else "full_attention" for index in range(config.num_hidden_layers)]
    _no(config, layer_types=usual)


def _minimax_m2_keys(writer: Any, config: Any) -> None:
    import gguf

    _no(config, hidden_act="silu")
    _text_keys(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(_turned(config))


def _lfm2_keys(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    inner = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        inner = int(config.block_ffn_dim_multiplier * int(2 * inner / 3))
        inner = config.block_multiple_of * -(-inner // config.block_multiple_of)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv([config.num_key_value_heads if kind != "conv" else 0 for kind in config.layer_types])
    _rope_keys(writer, config.rope_parameters)
    writer.add_vocab_size(config.vocab_size)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_layer_norm_rms_eps(config.norm_eps)


# Tensors


def _as_they_are(state: Named, _config: Any) -> Named:
    yield from state


def _llama_order(state: Named, config: Any) -> Named:
    """Meta's order of turned features in queries and keys, and the factors of Llama 3.1's rope as a tensor."""
    yield from _rope_freqs(config)
    for name, value in _split_experts(state, config):
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
    size = _turned(config)
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


def _split_experts(state: Named, _config: Any) -> Named:
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


def _qwen35_tensors(state: Named, config: Any) -> Named:
    """Heads of values in tiles, one of each head of keys, along rows or, in what reads them, columns."""
    heads, size = config.linear_num_key_heads, config.linear_value_head_dim
    before = 2 * config.linear_key_head_dim * heads

    def tiled(value: Any, width: int) -> Any:
        return value.reshape(heads, -1, width, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)

    for name, value in _split_experts(state, config):
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


def _phi3_tensors(state: Named, config: Any) -> Named:
    rope = config.rope_parameters
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32)
    yield from state


def _norms_plus_one(state: Named, _config: Any) -> Named:
    for name, value in state:
        yield name, value + 1 if name.endswith("norm.weight") else value


def _gemma4_tensors(state: Named, config: Any) -> Named:
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


def _stablelm_tensors(state: Named, _config: Any) -> Named:
    """The norms of heads, stacked."""
    stacks: dict[str, list[Any]] = {}
    for name, value in state:
        if "layernorm.norms." in name:
            stacks.setdefault(name.split(".norms.")[0] + ".weight", []).append(value)
        else:
            yield name, value
    for name, values in stacks.items():
        yield name, np.stack(values)


def _gpt2_tensors(state: Named, _config: Any) -> Named:
    for name, value in state:
        turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        yield name, value.T if turned else value


def _bloom_tensors(state: Named, config: Any) -> Named:
    heads = config.num_attention_heads
    for full, value in state:
        name = full.removeprefix("transformer.")
        if "query_key_value" in name:
            parts = value.reshape(heads, 3, -1, *value.shape[1:])
            yield name, np.concatenate([parts[:, i].reshape(-1, *value.shape[1:]) for i in range(3)])
        else:
            yield name, value


def _falcon_tensors(state: Named, config: Any) -> Named:
    heads, kv = config.num_attention_heads, _falcon_kv(config)
    for name, value in state:
        if "query_key_value" in name:
            groups = value.reshape(kv, heads // kv + 2, -1, *value.shape[1:])
            parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
            yield name, np.concatenate([part.reshape(-1, *value.shape[1:]) for part in parts])
        else:
            yield name, value


def _gpt_oss_tensors(state: Named, _config: Any) -> Named:
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


def _lfm2_tensors(state: Named, _config: Any) -> Named:
    for name, value in state:
        yield name, value.squeeze(1) if name.endswith("conv.conv.weight") else value


WRITERS: dict[str, tuple[str, Callable[[Any, Any], None], Callable[[Named, Any], Named]]] = {
    "llama": ("llama", _llama_keys, _llama_order),
    "mistral": ("llama", _llama_keys, _llama_order),
    "mixtral": ("llama", _llama_keys, _llama_order),
    "qwen2": ("qwen2", _qwen_keys, _split_experts),
    "qwen2_moe": ("qwen2moe", _qwen_keys, _split_experts),
    "qwen3": ("qwen3", _qwen_keys, _split_experts),
    "qwen3_moe": ("qwen3moe", _qwen_keys, _split_experts),
    "qwen3_5_text": ("qwen35", _qwen35_keys, _qwen35_tensors),
    "qwen3_5_moe_text": ("qwen35moe", _qwen35_keys, _qwen35_tensors),
    "phi3": ("phi3", _phi3_keys, _phi3_tensors),
    "starcoder2": ("starcoder2", _starcoder2_keys, _as_they_are),
    "stablelm": ("stablelm", _stablelm_keys, _stablelm_tensors),
    "nemotron": ("nemotron", _nemotron_keys, _norms_plus_one),
    "gemma2": ("gemma2", _gemma_keys, _norms_plus_one),
    "gemma3_text": ("gemma3", _gemma_keys, _norms_plus_one),
    "gemma4_text": ("gemma4", _gemma4_keys, _gemma4_tensors),
    "gpt2": ("gpt2", _gpt2_keys, _gpt2_tensors),
    "bloom": ("bloom", _bloom_keys, _bloom_tensors),
    "falcon": ("falcon", _falcon_keys, _falcon_tensors),
    "gpt_oss": ("gpt-oss", _gpt_oss_keys, _gpt_oss_tensors),
    "minimax_m2": ("minimax-m2", _minimax_m2_keys, _split_experts),
    "lfm2": ("lfm2", _lfm2_keys, _lfm2_tensors),
}
"""transformers' model type → llama.cpp's architecture, what writes its keys, and what makes tensors of its state."""


def can_write(kind: str) -> bool:
    """A model of this type can be written, if its settings have a place in the format."""
    return kind in WRITERS
