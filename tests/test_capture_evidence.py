"""Value norms, residuals, tracked tokens, tuned lenses and streams inside layers, against transformers alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import attnlens
from attnlens.capture import capture
from attnlens.capture.models import load
from attnlens.render.options import RenderOptions
from attnlens.render.views.open import open_view
from attnlens.schemas.errors import InputError
from attnlens.store.verify import verify
from families import byte_tokenizer, tiny_model
from plain_bits import own_order
from tiny import write_hf

PROMPT = "The quick brown fox"
TRACKED = [5, 99]
PARALLEL, POST_NORM = "run in parallel", "post-norm"
MID: dict[str, str | None] = {
    "llama": None, "gemma2": None, "gpt2": None, "granite": None, "olmo2": None, "deepseek_v3": None, "mistral": None,
    "gpt_neox": PARALLEL, "phi3": None, "opt": POST_NORM,
}  # fmt: skip
"""Families, and why those without a stream between attention and MLP have none."""


def attention_of(layer: Any) -> Any:
    return next(module for name, module in layer.named_children() if name in ("self_attn", "attn", "attention"))


def layers_of(model: Any) -> Any:
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def write_tuned(folder: Path, n_layer: int, width: int, **changes: Any) -> dict[str, torch.Tensor]:
    """A folder as the library tuned-lens saves it; returns the state of its translators."""
    folder.mkdir(parents=True, exist_ok=True)
    translators = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(n_layer)])
    with torch.no_grad():
        for number, weight in enumerate(part for part in translators.parameters() if part.dim() == 2):
            weight.copy_(torch.randn(width, width, generator=torch.Generator().manual_seed(number)) * 0.2)
    torch.save(translators.state_dict(), folder / "params.pt")
    config = {
        "base_model_name_or_path": "tiny", "d_model": width, "num_hidden_layers": n_layer, "bias": True,
        "base_model_revision": None, "unembed_hash": None, "lens_type": "linear_tuned_lens",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return translators.state_dict()


def split_rows(weight: torch.Tensor, n_head: int) -> torch.Tensor:
    """Rows (head · feature, width) of an output projection, by head."""
    return weight.reshape(n_head, -1, weight.shape[1])


def values_of(family: str, config: Any) -> tuple[str, Callable[[torch.Tensor], torch.Tensor], str]:
    """Where values come from: module, what takes (token, kv_head, feature) from its output; and the projection."""
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    match family:
        case "gpt2":
            return "c_attn", lambda out: out[:, 2 * config.hidden_size :].reshape(len(out), heads, size), "c_proj"
        case "gpt_neox":
            return "query_key_value", lambda out: out.reshape(len(out), heads, 3 * size)[..., 2 * size :], "dense"
        case "phi3":
            return "qkv_proj", lambda out: out[:, -kv_heads * size :].reshape(len(out), kv_heads, size), "o_proj"
        case "deepseek_v3":
            wide = config.qk_nope_head_dim + config.v_head_dim
            return "kv_b_proj", lambda out: out.reshape(len(out), heads, wide)[..., -config.v_head_dim :], "o_proj"
        case "opt":
            return "v_proj", lambda out: out.reshape(len(out), heads, size), "out_proj"
        case _:
            return "v_proj", lambda out: out.reshape(len(out), kv_heads, size), "o_proj"


@dataclass
class Case:
    """A capture of a tiny model with all that can be had, and what one pass of transformers over its text says."""

    family: str
    model: Any
    group: Any
    about: dict[str, Any]
    path: Path
    ids: list[int]
    residual: torch.Tensor
    written: torch.Tensor
    values: list[torch.Tensor]
    translators: dict[str, torch.Tensor]

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """log-probabilities (token, vocabulary) that the model's own tail reads from a stream (token, feature)."""
        handle = layers_of(self.model)[-1].register_forward_hook(
            lambda _, __, out: (stream[None], *out[1:]) if isinstance(out, tuple) else stream[None]
        )
        with torch.no_grad():
            logits = self.model(torch.tensor([self.ids[: len(stream)]]), use_cache=False).logits[0]
        handle.remove()
        return torch.log_softmax(logits.double(), -1)


@pytest.fixture(scope="module", params=sorted(MID))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family = request.param
    model = tiny_model(family)
    folder = tmp_path_factory.mktemp(family)
    translators = write_tuned(folder / "lens", 3, 32)
    report = capture(
        model,
        byte_tokenizer(),
        PROMPT,
        folder / "run.zarr",
        raw=True,
        max_new_tokens=11,
        temperature=0,
        lenses=["logit", f"tuned:{folder / 'lens'}"],
        lens_points="all",
        track=TRACKED,
        residuals=True,
    )
    group: Any = zarr.open_group(folder / "run.zarr", mode="r")["0000"]
    ids = group["token_id"][:].tolist()
    # Gemma 2's soft cap is left out by the kernels that transformers 5.1 takes by itself.
    model.set_attn_implementation("eager")
    module, take, _ = values_of(family, model.config)
    residual: dict[int, torch.Tensor] = {}
    written: dict[int, torch.Tensor] = {}
    values: dict[int, torch.Tensor] = {}
    layers, handles = layers_of(model), []
    for index, layer in enumerate(layers):
        attention = attention_of(layer)

        def enter(_: Any, args: Any, kwargs: Any, at: int = index) -> None:
            residual[at] = (args[0] if args else kwargs["hidden_states"])[0]

        def leave(_: Any, __: Any, out: Any, at: int = index) -> None:
            residual[at + 1] = first(out)[0]

        def wrote(_: Any, __: Any, out: Any, at: int = index) -> None:
            written[at] = first(out)[0]

        def value(_: Any, __: Any, out: Any, at: int = index) -> None:
            values[at] = take(out.reshape(-1, out.shape[-1]))

        source = {"gemma2": "post_attention_layernorm", "olmo2": "post_attention_layernorm"}.get(family)
        handles += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave),
            (getattr(layer, source) if source else attention).register_forward_hook(wrote),
            getattr(attention, module).register_forward_hook(value),
        ]
    with torch.no_grad():
        model(torch.tensor([ids[: report.n_fed]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return Case(
        family=family,
        model=model,
        group=group,
        about=group.attrs["attnlens"],
        path=folder / "run.zarr",
        ids=ids,
        residual=torch.stack([residual[depth] for depth in sorted(residual)]),
        written=torch.stack([written[layer] for layer in sorted(written)]),
        values=[values[layer] for layer in sorted(values)],
        translators=translators,
    )


def test_value_norm_is_the_length_of_the_value_through_the_output_projection(case: Case) -> None:
    stored = case.group["value_norm"][:]
    n_layer, n_head = case.about["model"]["n_layer"], case.about["model"]["n_head"]
    assert stored.shape == (n_layer, n_head, len(case.ids))
    _, __, name = values_of(case.family, case.model.config)
    for layer, module in enumerate(layers_of(case.model)):
        weight = getattr(attention_of(module), name).weight.detach()
        rows = split_rows(weight if case.family == "gpt2" else weight.T, n_head)
        value = case.values[layer].repeat_interleave(n_head // case.values[layer].shape[1], dim=1)
        expected = torch.einsum("khf,hfo->hko", value.double(), rows.double()).norm(dim=-1).numpy()
        fed = expected.shape[1]
        np.testing.assert_allclose(stored[layer, :, :fed], expected, rtol=1e-4, atol=1e-5)
        assert np.isnan(stored[layer, :, fed:]).all()


def test_residual_is_the_stream_itself(case: Case) -> None:
    stored = case.group["residual"][:]
    fed = case.residual.shape[1]
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored[:, :fed], case.residual.numpy(), rtol=1e-4, atol=1e-4)
    assert np.isnan(stored[:, fed:]).all()
    assert case.about["residual"] == {"n_feature": 32, "dtype": "float32"}


def test_tracked_tokens_are_followed_through_every_depth(case: Case) -> None:
    assert case.group["tracked_id"][:].tolist() == TRACKED
    rank, probability = case.group["tracked_rank"][:], case.group["tracked_probability"][:]
    for depth, stream in enumerate(case.residual):
        own = case.logits(stream)
        fed = len(own)
        for place, token in enumerate(TRACKED):
            chosen = own[:, token]
            np.testing.assert_allclose(probability[depth, :fed, place], chosen.exp().numpy(), atol=2e-5)
            low, high = ((own > chosen[:, None] + slack).sum(-1).numpy() for slack in (1e-4, -1e-4))
            assert ((low <= rank[depth, :fed, place]) & (rank[depth, :fed, place] <= high)).all()
    assert (rank[:, fed:] == -1).all()


def assert_reads(case: Case, lane: int, own: torch.Tensor, token: str, probability: str, entropy: str) -> None:
    fed = len(own)
    top = own.topk(2, dim=-1)
    clear = ((top.values[:, 0] - top.values[:, 1]) > 1e-4).numpy()
    assert clear.mean() > 0.8
    assert (case.group[token][lane, :fed, 0][clear] == top.indices[:, 0].numpy()[clear]).all()
    np.testing.assert_allclose(case.group[probability][lane, :fed, 0], top.values[:, 0].exp().numpy(), atol=2e-5)
    expected = -(own.exp() * own).sum(-1).numpy()
    np.testing.assert_allclose(case.group[entropy][lane, :fed], expected, atol=2e-3)


def test_a_tuned_lens_reads_the_translated_stream(case: Case) -> None:
    assert [lens["name"] for lens in case.about["lenses"]] == ["tuned"]
    assert case.about["lenses"][0]["source"] == "lens"
    assert case.about["lenses"][0]["hash"] != case.about["lens"]["hash"]
    for depth, stream in enumerate(case.residual):
        if depth < len(case.residual) - 1:
            weight, bias = case.translators[f"{depth}.weight"], case.translators[f"{depth}.bias"]
            stream = stream + stream @ weight.T + bias
        own = case.logits(stream)
        assert_reads(case, depth, own, "lens_token_tuned", "lens_probability_tuned", "lens_entropy_tuned")
        chosen = own[:, TRACKED[0]].exp().numpy()
        np.testing.assert_allclose(case.group["tracked_probability_tuned"][depth, : len(own), 0], chosen, atol=2e-5)
        following = torch.tensor(case.ids[1 : len(own) + 1])
        expected = own.gather(1, following[:, None])[:, 0].exp().numpy()
        np.testing.assert_allclose(case.group["next_probability_tuned"][depth, : len(own)], expected, atol=2e-5)
    last = case.group["lens_probability"][-1]
    np.testing.assert_array_equal(case.group["lens_probability_tuned"][-1], last)


def test_the_stream_inside_a_layer_is_read_where_there_is_one(case: Case) -> None:
    reason = MID[case.family]
    if reason is not None:
        assert reason in case.about["absent"]["mid"]
        assert not [name for name in case.group if name.startswith("mid_")]
        return
    factor = getattr(case.model.config, "residual_multiplier", 1.0)
    for layer, written in enumerate(case.written):
        own = case.logits(case.residual[layer] + written * factor)
        assert_reads(case, layer, own, "mid_token", "mid_probability", "mid_entropy")


def test_the_store_is_whole(case: Case) -> None:
    assert verify(case.path).problems == []


def test_a_texts_tokens_are_shown_when_it_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^track 'fox' is no single token: .* 3 tokens .*'f' = \d+, .*track N"):
        capture(tiny_model("llama"), byte_tokenizer(), "Hi", tmp_path / "run.zarr", raw=True, track=["fox"])
    with pytest.raises(InputError, match=r"^track 300: the vocabulary has the ids 0 … 299"):
        capture(tiny_model("llama"), byte_tokenizer(), "Hi", tmp_path / "run.zarr", raw=True, track=[300])
    assert not (tmp_path / "run.zarr").exists()


def test_bfloat16_residuals_are_kept_bit_for_bit(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    kept: list[torch.Tensor] = []
    handle = model.model.layers[1].register_forward_hook(lambda _, __, out: kept.append(first(out)[0].clone()))
    capture(model, byte_tokenizer(), "Hi", tmp_path / "run.zarr", raw=True, completion=" you", residuals=True)
    handle.remove()
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["0000"]
    assert group["residual"].attrs["attnlens"]["bits"] == "bfloat16"
    stored = own_order(group["residual"], group["residual"][2])
    np.testing.assert_array_equal(stored, kept[-1].view(torch.uint16).numpy())
    read = attnlens.open(tmp_path / "run.zarr")[0]["residual"][2]
    np.testing.assert_array_equal(read, kept[-1].float().numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 16}, r"0.bias is \(32,\) torch.float32, expected floating point \(16,\)"),
        ({"num_hidden_layers": 2}, r"expected 4 tensors 0.weight … 1.bias"),
        ({"lens_type": "other"}, "lens_type is 'other', expected 'linear_tuned_lens'"),
        ({"unembed_hash": "0" * 64}, r"tuned for the unembedding of tiny with hash 000000000000…, this model's is"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    ],
)
def test_a_lens_that_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_tuned(tmp_path / "lens", 3, 32, **change)
    with pytest.raises(InputError, match=message):
        capture(
            tiny_model("llama"), byte_tokenizer(), "Hi", tmp_path / "run.zarr", raw=True,
            lenses=[f"tuned:{tmp_path / 'lens'}"],
        )  # fmt: skip
    assert not (tmp_path / "run.zarr").exists()


class Bomb:
    def __reduce__(self) -> Any:
        return (Path("bomb-went-off").touch, ())


def test_a_lens_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tuned(tmp_path / "lens", 3, 32)
    torch.save({"0.weight": Bomb()}, tmp_path / "lens" / "params.pt")
    with pytest.raises(InputError, match=r"params.pt holds something else than tensors") as caught:
        capture(tiny_model("llama"), byte_tokenizer(), "Hi", "run.zarr", raw=True, lenses=["tuned:lens"])
    assert "\n" not in str(caught.value)
    assert not Path("bomb-went-off").exists()


def test_the_hash_of_the_unembedding_is_that_of_the_library(tmp_path: Path) -> None:
    # tuned_lens.utils.tensor_hash: sha256 of numpy.array_str(matrix, precision=1); here the print is known.
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(0.25)
    row = "[0.2 0.2 0.2 ... 0.2 0.2 0.2]"
    text = "[" + "\n ".join([row] * 3 + ["..."] + [row] * 3) + "]"
    write_tuned(tmp_path / "lens", 3, 32, unembed_hash=hashlib.sha256(text.encode()).hexdigest())
    report = capture(
        model, byte_tokenizer(), "Hi", tmp_path / "run.zarr", raw=True, max_new_tokens=2, temperature=0,
        lenses=[f"tuned:{tmp_path / 'lens'}"],
    )  # fmt: skip
    found = attnlens.open(report.path)[0]
    assert found.lens_names == ["tuned"]
    assert "lens_token" in found
    assert found.metadata.lenses == []


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_value_norm_of_a_quantised_projection_is_what_it_makes_of_each_head(quantize: str, tmp_path: Path) -> None:
    write_hf(tmp_path / "model", hidden_size=64)
    loaded = load(str(tmp_path / "model"), device="cpu", quantize=quantize)
    attention = loaded.model.model.layers[1].self_attn
    seen: list[torch.Tensor] = []
    handle = attention.v_proj.register_forward_hook(lambda _, __, out: seen.append(out[0]))
    capture(loaded.model, loaded.tokenizer, "Who is", tmp_path / "run.zarr", completion=" Bob?")
    handle.remove()
    found = attnlens.open(tmp_path / "run.zarr")[0]
    value = seen[-1].reshape(-1, 2, 16).repeat_interleave(2, dim=1)
    for head in range(4):
        alone = torch.zeros(1, len(value), 64)
        alone[0, :, 16 * head : 16 * head + 16] = value[:, head]
        with torch.no_grad():
            expected = attention.o_proj(alone)[0].norm(dim=-1).numpy()
        limit = 1e-5 if quantize == "4bit" else 2e-2  # 8 bits round the values, too
        np.testing.assert_allclose(found["value_norm"][1, head], expected, rtol=limit)
    assert any(check.name == "probe: output projection" for check in found.metadata.self_checks)


def test_what_is_no_plain_projection_is_absent_and_says_so(tmp_path: Path) -> None:
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    attention.o_proj = torch.nn.Sequential(torch.nn.LayerNorm(32), attention.o_proj)
    capture(model, byte_tokenizer(), "Hi", tmp_path / "normed.zarr", raw=True, max_new_tokens=2)
    found = attnlens.open(tmp_path / "normed.zarr")[0]
    assert "value_norm" not in found
    assert re.search(r"layers\.1\.self_attn\.o_proj \(Sequential\) is no plain matrix", found.why_absent("value_norm"))

    gated = tiny_model("llama")
    gated.model.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    capture(gated, byte_tokenizer(), "Hi", tmp_path / "gated.zarr", raw=True, max_new_tokens=2)
    why = attnlens.open(tmp_path / "gated.zarr")[0].why_absent("value_norm")
    assert "layers.2: no module takes what its attention returns as it is" in why


def test_an_adapted_projection_counts_with_its_adapter(tmp_path: Path) -> None:
    class Adapted(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base = base
            self.down, self.up = torch.nn.Linear(32, 2, bias=False), torch.nn.Linear(2, 32, bias=False)

        def forward(self, x: torch.Tensor) -> Any:
            return self.base(x) + self.up(self.down(x)) * 3

    model, plain = tiny_model("llama"), tiny_model("llama")
    attention = model.model.layers[1].self_attn
    adapted = attention.o_proj = Adapted(attention.o_proj).requires_grad_(requires_grad=False)
    merged = adapted.base.weight + 3 * adapted.up.weight @ adapted.down.weight
    plain.model.layers[1].self_attn.o_proj.weight.data = merged
    for name, one in (("adapted", model), ("merged", plain)):
        capture(one, byte_tokenizer(), "Hi", tmp_path / f"{name}.zarr", raw=True, completion=" you")
    found, expected = (attnlens.open(tmp_path / f"{name}.zarr")[0]["value_norm"][:] for name in ("adapted", "merged"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "gemma2"])
def test_both_ways_to_keep_attention_have_the_same_evidence(family: str, tmp_path: Path) -> None:
    for mode in ("dense", "qk"):
        capture(
            tiny_model(family), byte_tokenizer(), PROMPT, tmp_path / f"{mode}.zarr", raw=True, max_new_tokens=6,
            temperature=0, attention=mode, residuals=True, track=[5], lens_points="all",
        )  # fmt: skip
    dense, qk = (attnlens.open(tmp_path / f"{mode}.zarr")[0] for mode in ("dense", "qk"))
    assert qk.metadata.evidence == dense.metadata.evidence
    for name in dense.metadata.evidence:
        one, other = dense[name][:], qk[name][:]
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert (one == other).mean() > 0.99
    options = RenderOptions(scale="value-norm", heads="mean")
    drawn = [open_view(found, options) for found in (dense, qk)]
    one, other = (next(iter(view.scenes(view.units[-1])))[1].matrix for view in drawn)
    np.testing.assert_allclose(one, other, atol=2e-3)
    assert verify(tmp_path / "qk.zarr").problems == []
