"""Writes a small model as a GGUF file, in the layout of llama.cpp's convert_hf_to_gguf: names, orders, sums, keys.

Names of tensors are those of the package gguf. Nothing here knows how attnlens reads a file, so that the two do not
share a mistake; `llamacpp` compares the files with llama.cpp itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attnlens.benchmarks.models.gguf_keys import (
    NotWritableError,
    bloom_keys,
    falcon_keys,
    gemma4_keys,
    gemma_keys,
    gpt2_keys,
    gpt_oss_keys,
    lfm2_keys,
    llama_keys,
    minimax_m2_keys,
    nemotron_keys,
    phi3_keys,
    qwen35_keys,
    qwen_keys,
    stablelm_keys,
    starcoder2_keys,
)
from attnlens.benchmarks.models.gguf_tensors import (
    Named,
    as_they_are,
    bloom_tensors,
    falcon_tensors,
    gemma4_tensors,
    gpt2_tensors,
    gpt_oss_tensors,
    lfm2_tensors,
    llama_order,
    norms_plus_one,
    phi3_tensors,
    qwen35_tensors,
    split_experts,
    stablelm_tensors,
)


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


WRITERS: dict[str, tuple[str, Callable[[Any, Any], None], Callable[[Named, Any], Named]]] = {
    "llama": ("llama", llama_keys, llama_order),
    "mistral": ("llama", llama_keys, llama_order),
    "mixtral": ("llama", llama_keys, llama_order),
    "qwen2": ("qwen2", qwen_keys, split_experts),
    "qwen2_moe": ("qwen2moe", qwen_keys, split_experts),
    "qwen3": ("qwen3", qwen_keys, split_experts),
    "qwen3_moe": ("qwen3moe", qwen_keys, split_experts),
    "qwen3_5_text": ("qwen35", qwen35_keys, qwen35_tensors),
    "qwen3_5_moe_text": ("qwen35moe", qwen35_keys, qwen35_tensors),
    "phi3": ("phi3", phi3_keys, phi3_tensors),
    "starcoder2": ("starcoder2", starcoder2_keys, as_they_are),
    "stablelm": ("stablelm", stablelm_keys, stablelm_tensors),
    "nemotron": ("nemotron", nemotron_keys, norms_plus_one),
    "gemma2": ("gemma2", gemma_keys, norms_plus_one),
    "gemma3_text": ("gemma3", gemma_keys, norms_plus_one),
    "gemma4_text": ("gemma4", gemma4_keys, gemma4_tensors),
    "gpt2": ("gpt2", gpt2_keys, gpt2_tensors),
    "bloom": ("bloom", bloom_keys, bloom_tensors),
    "falcon": ("falcon", falcon_keys, falcon_tensors),
    "gpt_oss": ("gpt-oss", gpt_oss_keys, gpt_oss_tensors),
    "minimax_m2": ("minimax-m2", minimax_m2_keys, split_experts),
    "lfm2": ("lfm2", lfm2_keys, lfm2_tensors),
}
"""transformers' model type → llama.cpp's architecture, what writes its keys, and what makes tensors of its state."""


def can_write(kind: str) -> bool:
    """A model of this type can be written, if its settings have a place in the format."""
    return kind in WRITERS
