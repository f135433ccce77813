"""What a GGUF file says beside its matrices: applied, noted, or named in a refusal."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from attnlens.benchmarks.models.gguf_files import write_gguf
from attnlens.benchmarks.models.gguf_round_trip import LLAMA3, eager_rows, random_model
from attnlens.benchmarks.models.gguf_round_trip import rope_of as rope
from attnlens.capture import capture
from attnlens.capture.models import load
from attnlens.capture.models.gguf import read_header
from attnlens.capture.models.outline import outline
from attnlens.capture.models.request import Request
from attnlens.schemas.errors import InputError, ModelError
from families import byte_tokenizer
from tiny import llama

pytest.importorskip("gguf")
TEXT = "Alice and Bob are siblings. "


def written(folder: Path, model: Any = None, **changes: Any) -> Path:
    path = folder / "tiny.gguf"
    write_gguf(path, model or llama(), byte_tokenizer(), **changes)
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.new_scale", 2.0),
        ("llama.attention.scale", 0.1),
        ("llama.block_count", 10**9),
        ("llama.attention.causal", False),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.value_length", 4),
        ("llama.attn_logit_softcapping", 5.0),
        ("llama.final_logit_softcapping", 5.0),
        ("llama.logit_scale", 0.5),
        ("llama.residual_scale", 0.5),
        ("llama.embedding_scale", 12.0),
        ("llama.expert_weights_scale", 2.5),
        ("llama.leading_dense_block_count", 1),
        ("llama.nextn_predict_layers", 1),
        ("llama.use_parallel_residual", True),
        ("llama.vocab_size", 385),
        ("llama.attention.head_count_kv", [2, 2, 1]),
        ("llama.rope.dimension_count", 4),
        ("llama.rope.dimension_sections", [4, 4, 0, 0]),
        ("llama.rope.scaling.type", "ntk"),
        ("llama.rope.scaling.alpha", 1000.0),
        ("llama.rope.scaling.yarn_attn_factor", 1.5),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("tokenizer.ggml.new_rule", True),
        ("tokenizer.ggml.pre", "klingon"),
        ("tokenizer.ggml.model", "rwkv"),
        ("tokenizer.ggml.add_space_prefix", True),
        ("tokenizer.ggml.remove_extra_whitespaces", True),
    ],
)
def test_a_key_that_we_cannot_apply_is_named(tmp_path: Path, key: str, value: Any) -> None:
    path = written(tmp_path, keys={key: value})
    with pytest.raises(ModelError) as caught:
        load(str(path), device="cpu")
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
    if key in ("tokenizer.ggml.new_rule", "tokenizer.ggml.pre", "tokenizer.ggml.model"):
        assert "tokenizer names another" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("llama.attention.head_count", 0), ("llama.attention.layer_norm_rms_epsilon", "small")]
)
def test_a_key_of_another_kind_is_one_line(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=r"tiny\.gguf cannot be read: [^\n]+$"):
        load(str(written(tmp_path, keys={key: value})), device="cpu")


def test_keys_that_change_nothing_are_no_matter(tmp_path: Path) -> None:
    neutral: dict[str, Any] = {
        "llama.attention.scale": 8**-0.5,
        "llama.attention.causal": True,
        "llama.logit_scale": 1.0,
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.finetuned": True,
        "tokenizer.ggml.fim_pre_token_id": 5,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }
    model = random_model("llama")
    neutral["llama.attention.head_count_kv"] = [2] * model.config.num_hidden_layers
    loaded = load(str(written(tmp_path, model, keys=neutral)), device="cpu")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert "noted_keys" not in loaded.quantization["source"]  # type: ignore[index]


def test_another_tokenizer_stands_in_for_one_that_we_cannot_apply(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.pre": "klingon", "tokenizer.ggml.new_rule": True}
    path = written(tmp_path, keys=keys)
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    loaded = load(str(path), device="cpu", tokenizer=str(tmp_path / "tokenizer"))
    assert loaded.tokenizer(TEXT)["input_ids"] == byte_tokenizer()(TEXT)["input_ids"]
    assert loaded.quantization["source"]["noted_keys"] == ["tokenizer.ggml.new_rule"]  # type: ignore[index]
    assert len(outline(Request(str(path), tokenizer=str(tmp_path / "tokenizer"))).tokenizer) == 259


def test_keys_of_others_are_noted_in_the_store(tmp_path: Path) -> None:
    keys = {
        "quantize.imatrix.file": "x.dat",
        "uploader.mood": "good",
        "general.sampling.temp": 0.7,
        "general.name": "x",
    }
    loaded = load(str(written(tmp_path, keys=keys)), device="cpu")
    assert loaded.quantization["source"]["noted_keys"] == [  # type: ignore[index]
        "general.sampling.temp",
        "quantize.imatrix.file",
        "uploader.mood",
    ]


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.scale", "blk.0.ffn_gate_inp.weight", "blk.3.attn_q.weight", "mystery.weight", "output.bias"]
)
def test_a_tensor_without_a_place_is_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, tensors={name: np.ones((32, 32))})
    with pytest.raises(ModelError, match=f"{name.replace('.', '[.]')}"):
        load(str(path), device="cpu")


def test_a_tensor_without_a_place_may_be_ignored_on_request(tmp_path: Path) -> None:
    path = written(tmp_path, tensors={"blk.0.mystery.weight": np.ones((32, 32)), "blk.1.mystery.weight": np.ones(32)})
    loaded = load(str(path), device="cpu", ignore_weights=("blk.*.mystery.*",))
    (left,) = loaded.left_out
    assert (left.tensors, left.count) == ("blk.*.mystery.weight", 2)
    assert left.reason == "ignored on request: blk.*.mystery.*"
    for pattern in ("blk.0.attn_q.weight", "nothing"):
        with pytest.raises(InputError, match=f"ignore_weights {pattern} matches no tensor"):
            load(str(path), device="cpu", ignore_weights=("blk.*.mystery.*", pattern))


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.0\.mlp\.up_proj\.weight"):
        load(str(written(tmp_path, drop=("ffn_up.weight",))), device="cpu")


@pytest.mark.parametrize(
    ("key", "said"),
    [("mamba", "has no attention"), ("t5", "is no decoder alone"), ("gpt9", "is none that attnlens reads")],
)
def test_an_architecture_that_is_not_read_is_named(tmp_path: Path, key: str, said: str) -> None:
    with pytest.raises(ModelError, match=f"the architecture {key} {said}"):
        load(str(written(tmp_path, keys={"general.architecture": key})), device="cpu")


def test_llama_3_factors_are_found_by_their_name(tmp_path: Path) -> None:
    sizes = {"head_dim": 16, "max_position_embeddings": 16384}
    model = random_model("llama", rope_parameters=rope("llama3", 500000.0, factor=8.0, **LLAMA3), **sizes)
    loaded = load(str(written(tmp_path, model)), device="cpu")
    assert loaded.model.config.rope_parameters == model.config.rope_parameters
    capture(loaded.model, loaded.tokenizer, TEXT * 8, tmp_path / "run.zarr", completion="So", raw=True)
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["0000"]
    assert group.attrs["attnlens"]["model"]["config"]["rope_parameters"]["rope_type"] == "llama3"
    rows = eager_rows(model, group["token_id"][:-1].tolist())
    stored = group["attention_weight"][:, :, :-1, :-1]
    assert max(np.abs(a - b).max() for a, b in zip(stored, rows, strict=True)) < 5e-4
    plain = random_model("llama", rope_parameters=rope("default", 500000.0), **sizes)
    unscaled = eager_rows(plain, group["token_id"][:-1].tolist())
    assert max(np.abs(a - b).max() for a, b in zip(stored, unscaled, strict=True)) > 5e-3


def test_any_divisors_are_applied(tmp_path: Path) -> None:
    divisors = np.array([1.0, 1.7, 5.0, 2.0])
    loaded = load(str(written(tmp_path, tensors={"rope_freqs.weight": divisors})), device="cpu")
    expected = 10000.0 ** -(np.arange(4) / 4) / divisors
    np.testing.assert_allclose(loaded.model.model.rotary_emb.inv_freq, expected, rtol=1e-6)


@pytest.mark.parametrize("divisors", [np.ones(3), np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, np.nan, 1.0, 1.0])])
def test_divisors_that_are_none_are_refused(tmp_path: Path, divisors: Any) -> None:
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        load(str(written(tmp_path, tensors={"rope_freqs.weight": divisors})), device="cpu")


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_divisors_where_the_model_has_no_place_for_them(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, random_model(kind), tensors={"rope_freqs.weight": np.full(4, 2.0)})
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        load(str(path), device="cpu")


def test_three_biases_of_four(tmp_path: Path) -> None:
    model = random_model("llama", attention_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()
    loaded = load(str(written(tmp_path, model, drop=("attn_output.bias",))), device="cpu")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_gemma_2s_scale_is_known_by_its_layers_or_must_be_said(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    large = random_model("gemma2", num_hidden_layers=46, query_pre_attn_scalar=8, **sizes)
    path = written(tmp_path, large, keys={"gemma2.attention.scale": None})
    assert load(str(path), device="cpu").model.config.query_pre_attn_scalar == 8  # 16 / 2, and not the 4 of a head
    path = written(tmp_path, random_model("gemma2"), keys={"gemma2.attention.scale": None})
    with pytest.raises(ModelError, match=r"no key gemma2\.attention\.scale, and 4 layers are none of Google's"):
        load(str(path), device="cpu")


def test_pairs_without_an_axis(tmp_path: Path) -> None:
    keys = {"qwen35.rope.dimension_sections": [1, 0, 0, 0]}
    config = rope(partial_rotary_factor=0.5)
    with pytest.raises(ModelError, match=r"qwen35\.rope\.dimension_sections"):
        load(str(written(tmp_path, random_model("qwen3_5_text", rope_parameters=config), keys=keys)), device="cpu")


def test_layers_that_guess_tokens_ahead_are_left_out(tmp_path: Path) -> None:
    model = random_model("qwen3_5_text")
    ahead = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    ahead["qwen35.attention.recurrent_layers"] = [True, True, True, False, False]  # type: ignore[assignment]
    tensors = {"blk.4.nextn.eh_proj.weight": np.ones((32, 64)), "blk.4.attn_q.weight": np.ones((64, 32))}
    loaded = load(str(written(tmp_path, model, keys=ahead, tensors=tensors)), device="cpu")
    assert loaded.model.config.num_hidden_layers == 4
    assert [(left.tensors, left.count) for left in loaded.left_out] == [
        ("blk.*.attn_q.weight", 1),
        ("blk.*.nextn.eh_proj.weight", 1),
    ]
    with pytest.raises(ModelError, match=r"blk\.4\.nextn\.eh_proj\.weight"):
        load(str(written(tmp_path, model, tensors=tensors)), device="cpu")
    with pytest.raises(ModelError, match=r"nextn_predict_layers = 1 means layer 3, which has no nextn\.eh_proj"):
        load(str(written(tmp_path, model, keys={"qwen35.nextn_predict_layers": 1})), device="cpu")


def test_a_soft_cap_that_gemma_3_has_no_place_for(tmp_path: Path) -> None:
    """transformers' class keeps the setting and does not compute with it."""
    keys = {"gemma3.attn_logit_softcapping": 3.0}
    with pytest.raises(ModelError, match=r"gemma3\.attn_logit_softcapping = 3\.0"):
        load(str(written(tmp_path, random_model("gemma3_text", query_pre_attn_scalar=24), keys=keys)), device="cpu")


def test_several_tokens_may_end_a_text(tmp_path: Path) -> None:
    loaded = load(str(written(tmp_path, keys={"tokenizer.ggml.eot_token_id": 7})), device="cpu")
    assert loaded.model.generation_config.eos_token_id == [2, 7]


def test_a_split_file_is_refused_whatever_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is one of 2 parts"):
        load(str(written(tmp_path, keys={"split.count": 2})), device="cpu")


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    model = llama(vocab_size=260)
    write_gguf(tmp_path / "tiny.gguf", model, byte_tokenizer(), keys={"tokenizer.ggml.tokens": ["a"] * 300})
    with pytest.raises(ModelError, match="300 tokens and an embedding of 260 rows"):
        load(str(tmp_path / "tiny.gguf"), device="cpu")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)

    def end() -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    waited = Timer(5, end)
    waited.start()
    try:
        with pytest.raises(ModelError, match="no plain file"):
            read_header(pipe)
    finally:
        waited.cancel()
