"""Captures of queries and keys, against eager attention and against captures of weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
import zarr
from transformers.models.llama import modeling_llama

import attnlens
from attnlens.capture import capture
from attnlens.capture import encoding as encoding_module
from attnlens.capture import tap as tap_module
from attnlens.capture.override import tapped
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import InputError, ModelError
from attnlens.store.verify import verify
from families import CACHE, FAMILIES, SMALL, byte_tokenizer, tiny_model
from plain_bits import own_order

PROMPT = "The quick brown fox jumps over"
N_NEW = 6


def run(path: Path, model: Any, **options: Any) -> Any:
    """The one capture of a new store in qk mode."""
    wanted: dict[str, Any] = {
        "attention": "qk",
        "max_new_tokens": N_NEW,
        "temperature": 0,
        "raw": True,
        "value_norm": False,
    }
    capture(model, byte_tokenizer(), PROMPT, path, **(wanted | options))
    return attnlens.open(path)[0]


def passes(ids: list[int], n_prompt: int) -> list[list[int]]:
    """The text as a generation feeds it: the prompt, then token by token, the last one never."""
    return [ids[:n_prompt], *[[token] for token in ids[n_prompt:-1]]]


def eager_rows(model: Any, found: Any) -> np.ndarray[Any, Any]:
    """(layer, head, query, key) of transformers' own eager attention over the same text, as it was fed."""
    model.set_attn_implementation("eager")
    ids = found.token_id.tolist()
    n_layer, n_head = found.metadata.model.n_layer, found.metadata.model.n_head
    rows = np.zeros((n_layer, n_head, found.n_fed, len(ids)), np.float32)
    first, cache = 0, None
    with torch.no_grad():
        for piece in passes(ids, found.n_prompt):
            out = model(torch.tensor([piece]), **{CACHE: cache}, use_cache=True, output_attentions=True)
            cache, end = out[CACHE], first + len(piece)
            for layer, own in enumerate(out.attentions):
                rows[layer, :, first:end, end - own.shape[3] : end] = own[0].float().numpy()
            first = end
    return rows


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_replayed_rows_are_those_of_eager_attention(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    found = run(tmp_path / "run.zarr", model)
    expected = eager_rows(model, found)
    assert np.abs(found.attention.rows(range(found.n_fed)) - expected).max() <= 1e-5
    last = slice(found.n_prompt - 1, found.n_fed)
    for name, own in (("max", expected.max(1)), ("mean", expected.mean(1))):
        assert np.abs(found.attention.reduced(name, last) - own[:, last]).max() <= 6e-4
        assert np.abs(found.attention.reduced(name, range(5)) - own[:, :5]).max() <= 6e-4
    assert verify(tmp_path / "run.zarr").problems == []
    assert any(check.name == "probe: replay" for check in found.metadata.self_checks)


def recorded(model: Any, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]]:
    """Query, key, mask and scaling of each attention call of one pass, as transformers makes it."""
    calls = []

    def note(own: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        calls.append((query[0].clone(), key[0].clone(), mask, kwargs["scaling"]))
        return own(module, query, key, value, mask, **kwargs)

    with torch.no_grad(), tapped(model, note):
        model(torch.tensor([ids]), use_cache=False)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_are_those_of_the_models_own_queries_and_keys(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("qwen3", dtype=dtype)
    found = run(tmp_path / "run.zarr", model, max_new_tokens=0)
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["0000"]
    query, key, _, _ = recorded(model, found.token_id.tolist())[0]  # layer 0: nothing before it rounds differently
    for name, own in (("attention_q", query), ("attention_k", key)):
        stored = own_order(group[name], group[name][:, 0])
        bits = own.transpose(0, 1).contiguous().view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
        np.testing.assert_array_equal(stored.view(bits.dtype), bits)
    assert found.metadata.attention_dtype == str(dtype).removeprefix("torch.")


def test_bfloat16_is_closer_to_a_float_softmax_than_eager_is(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    found = run(tmp_path / "run.zarr", model, max_new_tokens=0)
    n, own = found.n_fed, eager_rows(model, found)
    q, k = found["attention_q"][:].astype(np.float64), found["attention_k"][:].astype(np.float64)
    for layer, info in enumerate(found.metadata.model.layers):
        keys = k[:, layer].repeat(2, axis=1)
        scores = info.scaling * np.einsum("qhf,khf->hqk", q[:, layer], keys) + np.triu(np.full((n, n), -np.inf), 1)
        exact = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        replayed = np.abs(found.attention.rows(range(n), layer)[0] - exact).max()
        assert replayed < 1e-6
        assert replayed < np.abs(own[layer] - exact).max() / 100


def pixels(path: Path) -> bytes:
    """What a PNG shows: its chunks of image data, inflated. Its recipe names the store, and differs."""
    data, at, parts = path.read_bytes(), 8, []
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        parts.append(data[at + 8 : at + 8 + size] if kind == b"IDAT" else b"")
        at += 12 + size
    return zlib.decompress(b"".join(parts))


@pytest.mark.parametrize("heads", ["max", "2"])
def test_pictures_of_both_encodings_are_the_same(heads: str, tmp_path: Path) -> None:
    model = tiny_model("mistral")
    names = []
    for mode in ("dense", "qk"):
        run(tmp_path / f"{mode}.zarr", model, attention=mode)
        options = RenderOptions(heads=heads)
        assert render(tmp_path / f"{mode}.zarr", tmp_path / mode, options=options).count > 5
        names.append(sorted(file.name for file in (tmp_path / mode).glob("*.png")))
    assert names[0] == names[1]
    for name in names[0]:
        assert pixels(tmp_path / "dense" / name) == pixels(tmp_path / "qk" / name), name
    dense, qk = (zarr.open_group(tmp_path / f"{mode}.zarr", mode="r")["0000"] for mode in ("dense", "qk"))
    for name in ("token_id", "lens_token", "lens_entropy", "attention_max", "attention_mean"):
        np.testing.assert_array_equal(dense[name][:], qk[name][:])  # type: ignore[index]


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gemma3"])
def test_given_text_and_blocks_of_rows_change_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    whole = run(tmp_path / "whole.zarr", model)
    ids = whole.token_id.tolist()[whole.n_prompt :]
    monkeypatch.setitem(tap_module.BLOCK_BYTES, "cpu", 4 * 4 * 40 * 3)
    given = run(tmp_path / "given.zarr", model, token_ids=ids)
    rows = range(whole.n_fed)
    np.testing.assert_allclose(given.attention.rows(rows), whole.attention.rows(rows), atol=2e-5)
    generated = slice(whole.n_prompt - 1, whole.n_fed)
    found = given.attention.reduced("max", generated)
    np.testing.assert_allclose(found, whole.attention.reduced("max", generated), atol=6e-4)


def test_auto_goes_by_size_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    small = run(tmp_path / "small.zarr", model, attention="auto").metadata
    assert (small.attention, small.attention_choice) == ("dense", "auto: 16.9 kB of weights, at most 37 tokens")
    monkeypatch.setattr(encoding_module, "SMALL_BYTES", 0)
    tight = run(tmp_path / "tight.zarr", model, attention="auto", max_new_tokens=60).metadata
    assert tight.attention == "qk"
    assert tight.attention_choice == "auto: 52.4 kB of queries and keys instead of 100 kB of weights, at most 91 tokens"


def llama_with(change: Callable[[dict[str, Any]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Llama whose calls of the attention function are changed."""
    plain = modeling_llama.LlamaAttention.forward
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", lambda self, *args, **kwargs: plain(self, *args, **change(kwargs))
    )
    return tiny_model("llama")


def with_mask(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda kwargs: {**kwargs, "attention_mask": change(kwargs["attention_mask"])}


MASKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a bias": lambda mask: mask - 0.1 * torch.arange(mask.shape[3]),
    "another for each head": lambda mask: torch.cat(
        [mask, mask, mask, mask.masked_fill(torch.arange(mask.shape[3]) % 2 == 1, mask.min())], 1
    ),
    "every third key": lambda mask: mask.masked_fill((torch.arange(mask.shape[3]) % 3 == 1), mask.min()),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_no_table_tells_are_refused_in_qk_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama_with(with_mask(MASKS[name]), monkeypatch)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: model\.layers\.0: its mask .*use attention='dense'"):
        run(tmp_path / "run.zarr", model)
    assert not (tmp_path / "run.zarr").exists()


def test_a_bias_is_stored_as_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama_with(with_mask(MASKS["a bias"]), monkeypatch)
    found = run(tmp_path / "run.zarr", model, attention="auto")
    assert found.metadata.attention == "dense"
    assert "no qk, because model.layers.0: its mask" in found.metadata.attention_choice
    assert np.abs(found.attention.rows(range(found.n_fed)) - eager_rows(model, found)).max() <= 3e-4


def test_a_mask_that_depends_on_the_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = t.DogeForCausalLM(t.DogeConfig(**SMALL, keep_window_size=8)).eval()
    with pytest.raises(ModelError, match=r"DogeForCausalLM: .*its mask .*use attention='dense'"):
        run(tmp_path / "run.zarr", model)


def test_scores_that_are_made_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama,
        "eager_attention_forward",
        lambda module, query, *rest, **more: own(module, query**3, *rest, **more),
    )
    with pytest.raises(ModelError, match=r"model\.layers\.0: weights made of its queries and keys are off by"):
        run(tmp_path / "run.zarr", tiny_model("llama"))


def test_layers_of_unequal_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    plain = modeling_llama.LlamaAttention.forward

    def wide(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.layer_idx == 1:
            monkeypatch.setattr(self.config, "_unused", 0, raising=False)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", wide)
    layer = model.model.layers[1].self_attn
    layer.k_proj = torch.nn.Linear(32, 32, bias=False)
    layer.v_proj = torch.nn.Linear(32, 32, bias=False)
    layer.num_key_value_groups = 1
    with pytest.raises(ModelError, match="queries and keys of its layers have different shapes"):
        run(tmp_path / "run.zarr", model)
    assert run(tmp_path / "run.zarr", model, attention="auto").metadata.attention == "dense"


def test_a_window_that_only_the_mask_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(mask: torch.Tensor) -> torch.Tensor:
        n_row, n_key = mask.shape[2:]
        if n_key <= 20:
            return mask
        query, key = torch.arange(n_key - n_row, n_key)[:, None], torch.arange(n_key)
        return mask.masked_fill(key <= query - 20, torch.finfo(mask.dtype).min)

    model = llama_with(with_mask(narrow), monkeypatch)
    found = run(tmp_path / "run.zarr", model)
    assert {(layer.kind, layer.window) for layer in found.metadata.model.layers} == {("sliding", 20)}
    assert np.abs(found.attention.rows(range(found.n_fed)) - eager_rows(model, found)).max() <= 1e-5


def test_a_mask_that_changes_its_mind_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(mask: torch.Tensor) -> torch.Tensor:
        return (
            mask if mask.shape[3] <= 33 else mask.masked_fill(torch.arange(mask.shape[3]) % 2 == 1, mask.min() - 1e38)
        )

    model = llama_with(with_mask(late), monkeypatch)
    with pytest.raises(ModelError, match=r"model\.layers\.0: its mask is not that of full attention"):
        run(tmp_path / "run.zarr", model)
    assert attnlens.open(tmp_path / "run.zarr")[0].status in ("partial", "failed")


def test_an_encoding_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="attention is 'sparse', expected one of dense, qk, auto"):
        run(tmp_path / "run.zarr", tiny_model("llama"), attention="sparse")


def test_a_function_that_scales_by_the_width_of_its_values_is_given_all_of_them() -> None:
    """GPT-2's did in transformers 5.1."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(1, 2, 5, 8)) * 3 for _ in range(3))

    def own(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: None) -> tuple[torch.Tensor, torch.Tensor]:
        weights = (q @ k.transpose(-1, -2) / v.size(-1) ** 0.5).softmax(-1)
        return weights @ v, weights

    given = [torch.tensor(one) for one in (query, key, value)]
    found = tap_module._in_float(own, given[0], given[1], given[2], None, (), {})
    scores = query[0] @ key[0].swapaxes(-1, -2) / 8**0.5
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
