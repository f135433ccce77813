"""What a small configuration needs beyond small numbers, by model type: arguments of the configuration's constructor.

`CONFIG` names another configuration class where the one of the model type is not what the model class takes; `PART`
inside a sub-configuration names its model type, whose small fields it gets.
"""

from __future__ import annotations

from typing import Any

CONFIG, PART = "_config", "_part"

SLIDING_AND_FULL = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
HYBRID = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ROPE_BY_KIND = {"sliding_attention": ROPE, "full_attention": ROPE}
LFM = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
VISION = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "image_size": 28,
}
SIGLIP = {PART: "siglip_vision_model", **VISION, "patch_size": 14}
SHARING = {"num_kv_shared_layers": 2, "layer_types": SLIDING_AND_FULL}
QWEN4 = {
    "hc_lowrank": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
}
DOTS3 = {
    "layer_types": ["sliding_attention", "indexed_attention"] * 2,
    "sliding_window": 7,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 8,
    "swa_head_dim": 8,
    "swa_qk_nope_head_dim": 4,
    "swa_v_head_dim": 6,
}
ASSISTANT = {"num_kv_shared_layers": 4, "layer_types": SLIDING_AND_FULL, "hidden_size_per_layer_input": 0}
BYTES = {"vocab_size": 300, "hidden_size_global": 32, "num_key_value_heads": 4, "num_attention_heads": 4, "head_dim": 8}

# The boundary lies in the generated text, so that what happens there is seen.
LONG_ROPE = {
    "original_max_position_embeddings": 43,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "short_mscale": 1.0,
        "long_mscale": 1.2,
        "original_max_position_embeddings": 43,
    },
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {**HYBRID, "attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_hash_byte_group_vocab": 502,
        "encoder_hash_byte_group_size": [3, 4],
        "patcher_config": {key: value for key, value in BYTES.items() if key != "hidden_size_global"},
        "encoder_config": BYTES,
        "decoder_config": BYTES,
        "global_config": {"num_key_value_heads": 4, "num_attention_heads": 4, "head_dim": 8},
    },
    "cohere_compass_text": {"layer_types": SLIDING_AND_FULL, "rope_parameters": ROPE_BY_KIND, "num_key_value_heads": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_num_experts": 4, "ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {"mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": DOTS3,
    "fuyu": {"text_config": {PART: "persimmon"}},
    "gemma3": {"vision_config": SIGLIP, "mm_tokens_per_image": 4, "text_config": {"layer_types": SLIDING_AND_FULL}},
    "gemma3_text": {"layer_types": SLIDING_AND_FULL},
    "gemma3n": {"text_config": SHARING},
    "gemma3n_text": SHARING,
    "gemma4": {"text_config": SHARING},
    "gemma4_text": SHARING,
    "gemma4_unified": {
        "text_config": {"layer_types": SLIDING_AND_FULL},
        "vision_config": {"patch_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16},
    },
    "gemma4_unified_text": {"layer_types": SLIDING_AND_FULL},
    "gemma4_unified_assistant": {
        "text_config": {PART: "gemma4_unified_text", **ASSISTANT, "num_kv_shared_layers": 2},
        "backbone_hidden_size": 32,
    },
    "got_ocr2": {
        "text_config": {PART: "qwen2"},
        "vision_config": {
            "num_hidden_layers": 1,
            "hidden_size": 32,
            "output_channels": 16,
            "num_attention_heads": 4,
            "mlp_dim": 48,
            "image_size": 64,
        },
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**HYBRID, "layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "laguna": {"layer_types": SLIDING_AND_FULL, "num_attention_heads_per_layer": [4, 2, 4, 2]},
    "lfm2": LFM,
    "lfm2_moe": LFM,
    "longcat_flash": {"head_dim": 4, "num_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "moshi": {"audio_vocab_size": 300},
    "moss_transcribe_diarize": {"text_config": {PART: "qwen3"}},
    "musicgen": {CONFIG: "MusicgenDecoderConfig", "num_codebooks": 1},
    "musicgen_melody": {CONFIG: "MusicgenMelodyDecoderConfig", "num_codebooks": 1},
    "phi3": LONG_ROPE,
    "phi4_multimodal": LONG_ROPE,
    "phimoe": LONG_ROPE,
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "reformer": {"is_decoder": True, "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, 16), "hash_seed": 0},
    "roc_bert": {
        "shape_vocab_size": 300,
        "pronunciation_vocab_size": 300,
        "shape_embed_dim": 32,
        "pronunciation_embed_dim": 32,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 5, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"]},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_attention_heads": 4,
        "n_mamba_heads": 8,
    },
}

NOT_BUILT = {
    "gemma4_assistant": "drafts for another model, from whose keys and values it reads; not a model by itself",
    "gemma3n": "its vision part needs the package timm; its text part is gemma3n_text",
}
"""Model types that cannot be built small here, and why."""

NEEDS_CACHE = frozenset({"blenderbot"})
"""Model types whose own cache has the encoder's number of layers."""
