"""The keys that llama.cpp's convert_hf_to_gguf writes for a configuration of transformers'."""

from __future__ import annotations

import math
from typing import Any


class NotWritableError(Exception):
    """A setting of the model has no place in a GGUF file."""


def _no(config: Any, **settings: Any) -> None:
    """Return if the configuration has these values, for which there are no keys."""
    for name, value in settings.items():
        found = getattr(config, name, value)
        if found != value and not (not found and not value):
            raise NotWritableError(f"llama.cpp's keys have no place for {name} = {found}")


def text_keys(writer: Any, config: Any, *, rope: bool = True) -> None:
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
        rope_keys(writer, config.rope_parameters)


def rope_keys(writer: Any, rope: dict[str, Any]) -> None:
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


def turned(config: Any) -> int:
    """Features of a head that are turned."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size * config.rope_parameters.get("partial_rotary_factor", 1.0))


def llama_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    text_keys(writer, config)
    if getattr(config, "sliding_window", None):  # the converter drops it, and with it what the model computes
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(turned(config))
    if hasattr(config, "num_local_experts"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def qwen_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu", use_sliding_window=False, decoder_sparse_step=1, mlp_only_layers=[])
    text_keys(writer, config)
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if hasattr(config, "shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
        if config.norm_topk_prob != (config.model_type == "qwen3_moe"):  # what llama.cpp takes for granted
            writer.add_expert_weights_norm(config.norm_topk_prob)


def qwen35_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    text_keys(writer, config)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_array(
        f"{writer.arch}.attention.recurrent_layers",
        [kind == "linear_attention" for kind in config.layer_types],
    )
    writer.add_rope_dimension_count(turned(config))
    sections = list(config.rope_parameters.get("mrope_section", [11, 11, 10]))
    writer.add_rope_dimension_sections([*sections, 0, 0, 0][:4])
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def phi3_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    rope = config.rope_parameters
    original = rope.get("original_max_position_embeddings", config.original_max_position_embeddings)
    text_keys(writer, config)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(turned(config))
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / original
        usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or usual)


def starcoder2_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="gelu_pytorch_tanh")
    text_keys(writer, config)
    if config.sliding_window:  # as above
        writer.add_sliding_window(config.sliding_window)


def stablelm_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu")
    text_keys(writer, config)
    writer.add_rope_dimension_count(turned(config))
    writer.add_parallel_residual(config.use_parallel_residual)


def nemotron_keys(writer: Any, config: Any) -> None:
    import gguf

    _no(config, hidden_act="relu2")
    text_keys(writer, config, rope=False)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(turned(config))
    _no_scaling(config.rope_parameters)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def gpt2_keys(writer: Any, config: Any) -> None:
    _no(config, activation_function="gelu_new", scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True)
    text_keys(writer, config, rope=False)


def bloom_keys(writer: Any, config: Any) -> None:
    _no(config, apply_residual_connection_post_layernorm=False)
    writer.add_context_length(getattr(config, "seq_length", None) or config.hidden_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def falcon_keys(writer: Any, config: Any) -> None:
    _no(config, alibi=False, parallel_attn=True, activation="gelu", bias=False)
    writer.add_context_length(2048)
    writer.add_tensor_data_layout("jploski")
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(falcon_kv(config))
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if config.rope_parameters["rope_theta"] != 10000.0:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _no_scaling(config.rope_parameters)


def falcon_kv(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def gemma_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=False)
    text_keys(writer, config)
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


def gemma4_keys(writer: Any, config: Any) -> None:
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


def gpt_oss_keys(writer: Any, config: Any) -> None:
    _no(config, hidden_act="silu", swiglu_alpha=1.702, swiglu_limit=7.0)
    rope = config.rope_parameters
    if rope["rope_type"] == "yarn" and rope.get("truncate", True):
        raise NotWritableError("llama.cpp's keys have no place for the truncate of GPT-OSS's rope")
    text_keys(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    usual = ["sliding_attention" if (index + 1) % 2 else "full_attention" for index in range(config.num_hidden_layers)]
    _no(config, layer_types=usual)


def minimax_m2_keys(writer: Any, config: Any) -> None:
    import gguf

    _no(config, hidden_act="silu")
    text_keys(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(turned(config))


def lfm2_keys(writer: Any, config: Any) -> None:
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
    rope_keys(writer, config.rope_parameters)
    writer.add_vocab_size(config.vocab_size)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_layer_norm_rms_eps(config.norm_eps)
