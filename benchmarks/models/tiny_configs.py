"""A configuration of a few thousand parameters for any causal language model of transformers.

Numbers of the default configuration are made small by their names, in every part of it; what does not follow from a
name is data, in `tiny_overrides`.
"""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from attnlens.benchmarks.models.tiny_overrides import CONFIG, OVERRIDES, PART

VOCABULARY = 300
LAYERS, WIDTH, HEADS, KV_HEADS, FEATURES, INNER, EXPERTS, CONTEXT, WINDOW = 4, 32, 4, 2, 8, 48, 4, 128, 7

SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS
    ),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "embedding_dim", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("lru_width",), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads", "swa_num_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), KV_HEADS),
    **dict.fromkeys(
        ("head_dim", "kv_channels", "dim_head", "swa_head_dim", "attention_head_size", "rotary_dim"), FEATURES
    ),
    **dict.fromkeys(("attention_head_dim", "linear_head_dim", "d_head"), FEATURES),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff"), INNER),
    **dict.fromkeys(("dim_ff", "ffn_hidden_size", "d_inner", "feed_forward_size", "intermediate_size_mlp"), INNER),
    **dict.fromkeys(("dense_intermediate_size", "prefix_dense_intermediate_size"), INNER),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("zero_expert_num",), 2),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), CONTEXT
    ),
    **dict.fromkeys(("context_length",), CONTEXT),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("attention_chunk_size", "local_attention"), WINDOW),
    **dict.fromkeys(("q_lora_rank",), 16),
    **dict.fromkeys(("kv_lora_rank", "o_lora_rank", "adapter_rank", "gated_norm_rank", "laurel_rank", "hc_lowrank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("v_head_dim",), 6),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim"), 8),
    **dict.fromkeys(("index_n_heads", "indexer_n_heads"), 2),
    **dict.fromkeys(("index_topk",), 10),
    **dict.fromkeys(("type_vocab_size",), 2),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input",), 8),
    **dict.fromkeys(
        ("vocab_size_per_layer_input", "vocab_size", "unpadded_vocab_size", "audio_vocab_size"), VOCABULARY
    ),
    **dict.fromkeys(("query_pre_attn_scalar",), FEATURES),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Small values by the name of a configuration's field; used where the default is a larger number."""

ALWAYS = frozenset({"pad_token_id", "bos_token_id", "eos_token_id", "vocab_size", "num_key_value_heads", "head_dim"})
"""Fields that are set even where the default is None or small already."""


def names() -> dict[str, str]:
    """Model type → class name, of every causal language model that the installed transformers knows."""
    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """A small configuration of the model type `kind`; `changes` win over everything."""
    given = {**OVERRIDES.get(kind, {}), **changes}
    name = given.pop(CONFIG, None)
    config = getattr(transformers, name) if name else CONFIG_MAPPING[kind]
    return config(**_merged(small_fields(config), given))


def _merged(small: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `small`, part by part."""
    merged = dict(small)
    for name, value in given.items():
        if isinstance(value, dict) and PART in value:
            part = {key: item for key, item in value.items() if key != PART}
            merged[name] = {"model_type": value[PART], **_merged(small_fields(CONFIG_MAPPING[value[PART]]), part)}
        elif isinstance(value, dict) and isinstance(small.get(name), dict):
            merged[name] = _merged(small[name], value)
        else:
            merged[name] = value
    return merged


def small_fields(config: type[PreTrainedConfig]) -> dict[str, Any]:
    """Values for the constructor of a configuration class, sub-configurations included."""
    parameters = inspect.signature(config.__init__).parameters
    latent = "kv_lora_rank" in parameters  # keys and values are unpacked to as many heads as there are queries
    fields: dict[str, Any] = {}
    for name, small in SMALL.items():
        if name not in parameters:
            continue
        default = parameters[name].default
        larger = isinstance(default, int) and not isinstance(default, bool) and default > small
        if larger or (name in ALWAYS and not (latent and name == "head_dim")):
            fields[name] = HEADS if latent and name == "num_key_value_heads" else small
    if "is_decoder" in parameters:  # an encoder of its time, bidirectional unless told
        fields["is_decoder"] = True
    for name, part in config.sub_configs.items():
        if name in parameters and part.__name__ != "AutoConfig":
            fields[name] = small_fields(part)
    return fields
