"""A model written as llama.cpp lays it out, captured from that file: its rows are the original's eager attention.

Settings are nobody's defaults, so that a key that is not applied shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import zarr

from attnlens.benchmarks.models.gguf_files import can_write, write_gguf
from attnlens.benchmarks.models.tiny_configs import LAYERS, tiny_config
from attnlens.benchmarks.models.tiny_tokenizer import byte_tokenizer
from attnlens.capture import capture
from attnlens.capture.models import load
from attnlens.schemas.errors import AttnlensError

PROMPT, COMPLETION = "Alice and Bob are siblings. Who is", " Bob's sister?"
LIMIT = 2.5e-4 + float(np.spacing(np.float16(1))) / 2
"""How far a row may be from the original's, in float32 and then rounded to float16."""
WINDOW, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"


def rope_of(kind: str = "default", theta: float = 500.0, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **values}


SECTIONS: dict[str, Any] = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
PHI: dict[str, Any] = {
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rms_norm_eps": 1e-3,
        "rope_parameters": rope_of("llama3", 500000.0, factor=8.0, **LLAMA3),
    },
    "llama linear": {"head_dim": 16, "rope_parameters": rope_of("linear", 20000.0, factor=4.0)},
    "llama yarn": {
        "tie_word_embeddings": True,
        "rope_parameters": rope_of(
            "yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0
        ),
    },
    "llama other factors": {
        "rope_parameters": rope_of(
            "llama3", factor=3.0, low_freq_factor=1.5, high_freq_factor=3.0, original_max_position_embeddings=64
        )
    },
    "mistral": {"sliding_window": 7, "head_dim": 16, "rope_parameters": rope_of()},
    "mixtral": {"sliding_window": 5, "num_experts_per_tok": 3, "rope_parameters": rope_of()},
    "qwen2": {"rope_parameters": rope_of("yarn", factor=4.0, original_max_position_embeddings=32)},
    "qwen2_moe": {"num_experts_per_tok": 3, "norm_topk_prob": True, "rope_parameters": rope_of()},
    "qwen3": {"attention_bias": True, "head_dim": 16, "rope_parameters": rope_of("linear", factor=2.0)},
    "qwen3_moe": {"attention_bias": True, "head_dim": 16, "norm_topk_prob": False, "rope_parameters": rope_of()},
    "phi3": {
        "sliding_window": 7,
        "original_max_position_embeddings": 16,
        "rope_parameters": rope_of("longrope", partial_rotary_factor=1.0, **PHI),
    },
    "phi3 partial": {"sliding_window": None, "rope_parameters": rope_of(partial_rotary_factor=0.5)},
    "starcoder2": {"sliding_window": 7, "norm_epsilon": 1e-2, "rope_parameters": rope_of()},
    "starcoder2 without biases": {"sliding_window": None, "use_bias": False},
    "stablelm": {
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "rope_parameters": rope_of(partial_rotary_factor=0.5),
    },
    "stablelm in series": {"layer_norm_eps": 1e-2},
    "nemotron": {"attention_bias": True, "mlp_bias": True, "rope_parameters": rope_of(partial_rotary_factor=0.75)},
    "gemma2": {
        "query_pre_attn_scalar": 144,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "attention_bias": True,
        "rope_parameters": rope_of("linear", factor=2.0),
    },
    "gemma2 other layers": {"query_pre_attn_scalar": 8, "layer_types": [FULL, WINDOW, WINDOW, FULL]},
    "gemma3_text": {
        "query_pre_attn_scalar": 24,
        "sliding_window": 5,
        "layer_types": [WINDOW, FULL, WINDOW, FULL],
        "final_logit_softcapping": 4.0,
        "rope_parameters": {FULL: rope_of("linear", factor=8.0), WINDOW: rope_of(theta=77.0)},
    },
    "gemma3_text without windows": {"layer_types": [FULL] * LAYERS},
    "gemma4_text": {
        "num_hidden_layers": 6,
        "layer_types": [WINDOW, FULL] * 3,
        "sliding_window": 5,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 3,
        "moe_intermediate_size": 16,
        "final_logit_softcapping": 4.0,
        "rope_parameters": {FULL: rope_of("proportional", partial_rotary_factor=0.5), WINDOW: rope_of(theta=77.0)},
    },
    "gemma4_text plain": {"global_head_dim": 16},
    "qwen3_5_text": {
        "head_dim": 16,
        "linear_num_value_heads": 4,
        "layer_types": [FULL, LINEAR, LINEAR, FULL],
        "rope_parameters": rope_of(partial_rotary_factor=0.5, **SECTIONS),
    },
    "qwen3_5_moe_text": {
        "head_dim": 16,
        "linear_num_value_heads": 6,
        "num_experts_per_tok": 3,
        "rope_parameters": rope_of(partial_rotary_factor=0.5, **SECTIONS),
    },
    "gpt2": {"n_inner": 40, "layer_norm_epsilon": 1e-2},
    "gpt2 two matrices": {"tie_word_embeddings": False},
    "bloom": {"layer_norm_epsilon": 1e-2},
    "falcon": {"rope_parameters": rope_of()},
    "falcon new": {"new_decoder_architecture": True, "num_kv_heads": 2, "rope_parameters": rope_of()},
    "falcon new one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon all heads": {"multi_query": False, "tie_word_embeddings": False},
    "gpt_oss": {
        "sliding_window": 5,
        "num_experts_per_tok": 3,
        "rope_parameters": rope_of("yarn", factor=8.0, truncate=False, original_max_position_embeddings=32),
    },
    "minimax_m2": {"num_experts_per_tok": 3, "rope_parameters": rope_of(partial_rotary_factor=0.5)},
    "lfm2": {"block_auto_adjust_ff_dim": False, "rope_parameters": rope_of()},
}


def random_model(kind: str, **changes: Any) -> Any:
    """A model whose attention is far from flat, every bias and norm other than it begins."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        tiny_config(kind, **changes), attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("inv_freq", "embed_scale")):
                continue
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise * 0.35 if value.dim() > 1 else value + noise * 0.2)
    return model


def eager_rows(model: Any, ids: list[int]) -> list[Any]:
    """Attention (head, query, key) of each layer that attends, by transformers alone."""
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True)
    return [weights[0].numpy() for weights in out.attentions if weights is not None]


@dataclass(frozen=True)
class RoundTrip:
    """What came of one case.

    error: the largest difference between a stored weight and the original's; infinite if tokens or layers differ.
    sharpest: the largest weight of a key beyond the first three: flat rows would prove nothing.
    config: of the model that was loaded.
    """

    error: float
    sharpest: float
    config: dict[str, Any]


def round_trip(case: str, path: Path, store: Path) -> RoundTrip:
    """Writes the model of a case to `path`, captures it from there, and compares.

    Raises:
        AttnlensError: the file is refused.
    """
    model = random_model(case.split()[0], **CASES[case])
    write_gguf(path, model, byte_tokenizer())
    loaded = load(str(path), device="cpu")
    capture(loaded.model, loaded.tokenizer, PROMPT, store, completion=COMPLETION, raw=True)
    group: Any = zarr.open_group(store, mode="r")["0000"]
    ids = group["token_id"][:].tolist()
    config = loaded.model.config.to_dict()
    if ids != byte_tokenizer()(PROMPT + COMPLETION)["input_ids"]:
        return RoundTrip(float("inf"), 0.0, config)
    expected = eager_rows(model, ids[:-1])
    stored = [layer for layer in group["attention_weight"][:].astype(np.float32) if not np.isnan(layer).all()]
    if len(stored) != len(expected):
        return RoundTrip(float("inf"), 0.0, config)
    fed = len(ids) - 1
    apart = (np.abs(layer[:, :fed, :fed] - rows).max() for layer, rows in zip(stored, expected, strict=True))
    return RoundTrip(float(max(apart)), float(max(rows[:, 3:].max() for rows in expected)), config)


def round_trips(kind: str, folder: Path) -> str:
    """Of all cases of a model type: `yes`, why the file is refused, or, beginning with `no`, what went wrong.

    `-` where llama.cpp's layout of the type is not known here.
    """
    cases = [case for case in CASES if case.split()[0] == kind]
    if not can_write(kind) or not cases:
        return "-"
    for number, case in enumerate(cases):
        try:
            error = round_trip(case, folder / f"{number}.gguf", folder / f"{number}.zarr").error
        except AttnlensError as refusal:
            return f"refused: {refusal}"
        if not error <= LIMIT:
            return f"no: {case} is off by {error:.2g}"
    return "yes"
