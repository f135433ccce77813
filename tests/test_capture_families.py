"""Rows, residuals and lens readings against transformers' own eager attention, over tiny models of many families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from attnlens.capture import capture
from families import CACHE, FAMILIES, byte_tokenizer, tiny_model

N_NEW = 6
PROMPT = "The quick brown fox"


@dataclass
class Case:
    """A capture of a tiny model, as plain zarr reads it, and the same computed by transformers alone."""

    model: Any
    group: Any
    metadata: dict[str, Any]
    ids: list[int]
    n_prompt: int
    n_fed: int
    attention: list[list[torch.Tensor]]
    logits: torch.Tensor
    residual: torch.Tensor


def passes(ids: list[int], n_prompt: int) -> list[list[int]]:
    """The text as a generation feeds it: the prompt, then token by token, the last one never."""
    return [ids[:n_prompt], *[[token] for token in ids[n_prompt:-1]]]


def layers_of(model: Any) -> torch.nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def tensor_of(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = tiny_model(request.param)
    path = tmp_path_factory.mktemp(request.param) / "run.zarr"
    report = capture(model, byte_tokenizer(), PROMPT, path, raw=True, max_new_tokens=N_NEW, temperature=0)
    group: Any = zarr.open_group(path, mode="r")["0000"]
    ids = group["token_id"][:].tolist()
    model.set_attn_implementation("eager")
    kept: dict[int, list[torch.Tensor]] = {}
    layers = layers_of(model)
    handles = [
        layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: kept.setdefault(0, []).append((args[0] if args else kwargs["hidden_states"])[0]),
            with_kwargs=True,
        )
    ]
    for depth, layer in enumerate(layers, start=1):
        handles.append(
            layer.register_forward_hook(lambda _, __, out, d=depth: kept.setdefault(d, []).append(tensor_of(out)[0]))
        )
    attention, logits, cache = [], [], None
    with torch.no_grad():
        for piece in passes(ids, report.n_prompt):
            out = model(torch.tensor([piece]), **{CACHE: cache}, use_cache=True, output_attentions=True)
            cache = out[CACHE]
            attention.append([weights[0] for weights in out.attentions])
            logits.append(out.logits[0])
    for handle in handles:
        handle.remove()
    return Case(
        model=model,
        group=group,
        metadata=group.attrs["attnlens"],
        ids=ids,
        n_prompt=report.n_prompt,
        n_fed=report.n_fed,
        attention=attention,
        logits=torch.cat(logits),
        residual=torch.stack([torch.cat(kept[depth]) for depth in sorted(kept)]),
    )


def test_the_text_is_the_greedy_one(case: Case) -> None:
    assert case.ids[case.n_prompt :] == case.logits[case.n_prompt - 1 :].argmax(-1).tolist()
    assert case.n_fed == len(case.ids) - 1


def test_every_row_is_what_eager_attention_says(case: Case) -> None:
    weights = case.group["attention_weight"][:]
    maximum, mean = case.group["attention_max"][:], case.group["attention_mean"][:]
    assert weights.dtype == np.float16
    first = 0
    for step in case.attention:
        end = first + step[0].shape[1]
        for layer, own in enumerate(step):
            expected = np.zeros((own.shape[0], end - first, len(case.ids)), dtype=np.float32)
            expected[..., end - own.shape[2] : end] = own.numpy()
            # float16 rounds a weight below 1 by at most 2.5e-4.
            assert np.abs(weights[layer, :, first:end] - expected).max() <= 3e-4
            if end >= case.n_prompt:
                row = end - case.n_prompt
                assert np.abs(maximum[row, layer] - expected[:, -1].max(axis=0)).max() <= 3e-4
                assert np.abs(mean[row, layer] - expected[:, -1].mean(axis=0)).max() <= 6e-4
        first = end
    assert first == case.n_fed
    assert np.isnan(weights[:, :, first:]).all()
    assert np.isnan(maximum[case.n_fed - case.n_prompt + 1 :]).all()


def test_every_depth_is_read_as_the_models_own_tail_reads_it(case: Case) -> None:
    # The model's own tail, independently: a hook swaps the last layer's output for the residual of another depth.
    meta = case.metadata
    assert meta["lens"] is not None, meta["lens_absent"]
    token, probability = case.group["lens_token"][:], case.group["lens_probability"][:]
    entropy, next_rank = case.group["lens_entropy"][:], case.group["next_rank"][:]
    following = torch.tensor(case.ids[1 : case.n_fed + 1])
    exempt = []
    for depth, stream in enumerate(case.residual):

        def swap(_: Any, __: Any, out: Any, stream: torch.Tensor = stream) -> Any:
            return (stream[None], *out[1:]) if isinstance(out, tuple) else stream[None]

        handle = layers_of(case.model)[-1].register_forward_hook(swap)
        with torch.no_grad():
            logits = case.model(torch.tensor([case.ids[: case.n_fed]]), use_cache=False).logits[0]
        handle.remove()
        own = torch.log_softmax(logits.double(), -1)
        top = own.topk(2, dim=-1)
        clear = ((top.values[:, 0] - top.values[:, 1]) > 1e-5).numpy()
        exempt.append(1 - clear.mean())
        fed = slice(0, case.n_fed)
        assert (token[depth, fed, 0][clear] == top.indices[:, 0].numpy()[clear]).all()
        assert np.abs(probability[depth, fed, 0] - top.values[:, 0].exp().numpy()).max() < 1e-5
        assert np.abs(entropy[depth, fed] - -(own.exp() * own).sum(-1).numpy()).max() < 1e-3
        chosen = own.gather(1, following[:, None])
        assert np.abs(case.group["next_probability"][depth, fed] - chosen[:, 0].exp().numpy()).max() < 1e-5
        # Ranks may differ where logits tie to within rounding.
        low, high = (own > chosen + 1e-5).sum(-1).numpy(), (own > chosen - 1e-5).sum(-1).numpy()
        assert ((low <= next_rank[depth, fed]) & (next_rank[depth, fed] <= high)).all()
    assert np.mean(exempt) < 0.05


def test_depth_zero_is_the_input_of_layer_zero(case: Case) -> None:
    assert case.group["depth"][:].tolist() == list(range(len(layers_of(case.model)) + 1))
    assert len(case.residual) == len(layers_of(case.model)) + 1


def test_the_layer_table_says_what_the_kernel_did(case: Case) -> None:
    table = case.metadata["model"]["layers"]
    config = case.model.config
    for layer, row in enumerate(table):
        assert row["n_head"] == case.attention[0][layer].shape[0]
        types = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        sliding = window and (types is None or types[layer] == "sliding_attention")
        assert row["kind"] == ("sliding" if sliding else "full")
        assert row["window"] == (window if sliding else None)
        assert row["softcap"] == getattr(config, "attn_logit_softcapping", None)
        assert row["sinks"] == (config.model_type == "gpt_oss")


def test_the_families_that_were_promised_are_here() -> None:
    promised = [
        "llama",
        "qwen3",
        "mistral",
        "gemma2",
        "gemma3",
        "phi3",
        "gpt2",
        "gpt_neox",
        "olmo2",
        "mixtral",
        "gpt_oss",
    ]
    assert set(promised) <= set(FAMILIES)
