"""Tiny random models of many families, made from configurations alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import bytes_to_unicode

CACHE = "cache" if "cache" in inspect.signature(t.LlamaForCausalLM.forward).parameters else "past_key_values"
"""What this version of transformers calls keys and values of earlier tokens, as an argument and in its outputs."""
VOCABULARY = 300
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaConfig(**SMALL),
    "qwen3": lambda: t.Qwen3Config(**SMALL, head_dim=8),
    "mistral": lambda: t.MistralConfig(**SMALL, sliding_window=7),
    "gemma2": lambda: t.Gemma2Config(
        **SMALL,
        head_dim=8,
        sliding_window=7,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": lambda: t.Gemma3TextConfig(
        **SMALL,
        head_dim=8,
        sliding_window=7,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": lambda: t.Phi3Config(**SMALL),
    "gpt2": lambda: t.GPT2Config(**GPT2),
    "gpt_neox": lambda: t.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "olmo2": lambda: t.Olmo2Config(**SMALL),
    "mixtral": lambda: t.MixtralConfig(**SMALL, **EXPERTS),
    "gpt_oss": lambda: t.GptOssConfig(
        **SMALL,
        **EXPERTS,
        head_dim=8,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "deepseek_v3": lambda: t.DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=6,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "cohere": lambda: t.CohereConfig(**SMALL, logit_scale=0.25),
    "granite": lambda: t.GraniteConfig(**SMALL, logits_scaling=4.0),
    "opt": lambda: t.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        do_layer_norm_before=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random model, its weights larger than usual so that attention is far from uniform."""
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if name.endswith("sinks"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def byte_tokenizer() -> Any:
    """One token a byte, and three special ones: any text fits the vocabulary of the tiny models."""
    alphabet = bytes_to_unicode()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {alphabet[byte]: 3 + byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
