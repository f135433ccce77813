"""A capture as a whole: sampling, given text, blocks, smaller dtypes, and a model left as it was found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xarray
import zarr

import attnlens
from attnlens.capture import capture
from attnlens.capture import tap as tap_module
from attnlens.capture.lenses.reader import LaneReader
from attnlens.capture.override import tapped
from attnlens.capture.session import Session
from attnlens.render.pictures import render
from attnlens.schemas.errors import Interrupted, ModelError
from attnlens.store.verify import verify
from families import SMALL, byte_tokenizer, tiny_model

PROMPT = "The quick brown fox jumps over the lazy dog"


def arrays(path: Path) -> dict[str, Any]:
    group: Any = zarr.open_group(path, mode="r")["0000"]
    return {name: array[:] for name, array in group.arrays()}


def run(path: Path, model: Any | None = None, **options: Any) -> dict[str, Any]:
    capture(
        model or tiny_model("llama"),
        byte_tokenizer(),
        PROMPT,
        path,
        raw=True,
        **{"max_new_tokens": 5, "temperature": 0, **options},
    )
    return arrays(path)


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name].astype(np.float32), other[name].astype(np.float32), atol=5e-4)
        elif not name.startswith("manifest"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_blocks_of_rows_change_nothing(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole.zarr", tiny_model(family))
    monkeypatch.setitem(tap_module.BLOCK_BYTES, "cpu", 4 * 4 * 40 * 3)
    assert_close(run(tmp_path / "blocks.zarr", tiny_model(family)), whole)


def test_given_text_is_the_same_evidence_as_generated_text(tmp_path: Path) -> None:
    generated = run(tmp_path / "generated.zarr", max_new_tokens=6)
    n_prompt = attnlens.open(tmp_path / "generated.zarr")[0].n_prompt
    ids = generated["token_id"].tolist()
    given = run(tmp_path / "given.zarr", token_ids=ids[n_prompt:])
    meta = attnlens.open(tmp_path / "given.zarr")[0].metadata
    assert meta.sampling.forced
    assert meta.n_fed == meta.n_token == len(ids)  # every token is fed
    fed = len(ids) - 1
    np.testing.assert_allclose(
        given["attention_weight"][:, :, :fed].astype(np.float32),
        generated["attention_weight"][:, :, :fed].astype(np.float32),
        atol=5e-4,
    )
    assert not np.isnan(given["attention_max"]).any()
    np.testing.assert_array_equal(given["next_rank"][:, :fed], generated["next_rank"][:, :fed])
    assert (given["next_rank"][:, fed] == -1).all()
    assert np.isnan(given["next_probability"][:, fed]).all()
    assert (given["lens_token"][:, fed] >= 0).all()


def test_given_tokens_keep_the_models_own_probability(tmp_path: Path) -> None:
    data = run(tmp_path / "given.zarr", completion=" again.")
    meta = attnlens.open(tmp_path / "given.zarr")[0].metadata
    judged = slice(meta.n_prompt - 1, meta.n_token - 1)
    np.testing.assert_allclose(data["model_probability"][judged], data["next_probability"][-1, judged], atol=1e-6)
    assert np.isnan(data["model_probability"][: meta.n_prompt - 1]).all()
    assert np.isnan(data["model_probability"][-1])


def test_completion_text_is_the_same_as_its_ids(tmp_path: Path) -> None:
    text = run(tmp_path / "text.zarr", completion=" Then it slept.")
    ids = byte_tokenizer().encode(" Then it slept.", add_special_tokens=False)
    assert text["token_id"][-len(ids) :].tolist() == ids


def test_seed_repeats_a_sample_and_another_seed_does_not(tmp_path: Path) -> None:
    options = {"temperature": 5.0, "top_p": 1.0, "max_new_tokens": 12}
    first = run(tmp_path / "a.zarr", seed=1, **options)["token_id"].tolist()
    torch.manual_seed(99)  # the sampler has a generator of its own
    assert run(tmp_path / "b.zarr", seed=1, **options)["token_id"].tolist() == first
    assert run(tmp_path / "c.zarr", seed=2, **options)["token_id"].tolist() != first


def test_sampling_is_recorded_probabilities_are_from_before_it(tmp_path: Path) -> None:
    data = run(tmp_path / "run.zarr", temperature=0.7, top_p=0.5, seed=3)
    meta = attnlens.open(tmp_path / "run.zarr")[0].metadata
    assert (meta.sampling.temperature, meta.sampling.top_p, meta.sampling.seed) == (0.7, 0.5, 3)
    fed = slice(meta.n_prompt - 1, meta.n_fed)
    np.testing.assert_allclose(data["model_probability"][fed], data["next_probability"][-1, fed], atol=1e-6)
    assert np.isnan(data["model_probability"][: meta.n_prompt - 1]).all()


def test_generation_stops_at_the_models_end_token(tmp_path: Path) -> None:
    model = tiny_model("llama")
    free = run(tmp_path / "free.zarr", model, max_new_tokens=8)["token_id"].tolist()
    n_prompt = attnlens.open(tmp_path / "free.zarr")[0].n_prompt
    model.generation_config.eos_token_id = [2, free[n_prompt + 2]]
    stopped = run(tmp_path / "stopped.zarr", model, max_new_tokens=8)["token_id"].tolist()
    first = free.index(free[n_prompt + 2], n_prompt)
    assert stopped == free[: first + 1]  # the stop token is on the timeline, and was not fed


def test_context_bounds_the_generation(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.generation_config.eos_token_id = None
    capture(model, byte_tokenizer(), "x" * 120, tmp_path / "run.zarr", raw=True, max_new_tokens=500, temperature=0)
    assert attnlens.open(tmp_path / "run.zarr")[0].n_fed == 128


def test_no_new_tokens_keeps_the_prompt(tmp_path: Path) -> None:
    data = run(tmp_path / "run.zarr", max_new_tokens=0)
    meta = attnlens.open(tmp_path / "run.zarr")[0].metadata
    assert meta.n_token == meta.n_fed == meta.n_prompt
    assert data["attention_max"].shape[0] == 1


def test_without_a_lens_none_is_stored(tmp_path: Path) -> None:
    data = run(tmp_path / "run.zarr", lens=False)
    assert "lens_token" not in data
    meta = attnlens.open(tmp_path / "run.zarr")[0].metadata
    assert meta.lens is None
    assert meta.lens_absent == "not asked for"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_dtypes_keep_a_float32_softmax_of_the_models_own_query_and_key(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model("llama", dtype=dtype)
    data = run(tmp_path / "run.zarr", model)
    ids = torch.tensor([data["token_id"].tolist()[:-1]])
    expected: list[Any] = []

    def formula(own: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        key_heads = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query.double() @ key_heads.transpose(2, 3) * kwargs["scaling"]
        future = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
        expected.append(scores.masked_fill(future, -torch.inf).softmax(-1)[0].numpy())
        return own(module, query, key, value, mask, **kwargs)

    with torch.no_grad(), tapped(model, formula):
        model(ids, use_cache=False)
    fed = ids.shape[1]
    n_prompt = attnlens.open(tmp_path / "run.zarr")[0].n_prompt
    for layer, rows in enumerate(expected):
        # Prompt rows share one pass with the reference; layer 0 sees identical inputs in all rows.
        n_row = fed if layer == 0 else n_prompt
        stored = data["attention_weight"][layer, :, :n_row, :fed].astype(np.float32)
        assert np.abs(stored - rows[:, :n_row]).max() < (1e-3 if layer == 0 else 2e-2)


def test_the_model_is_left_as_it_was_found(tmp_path: Path) -> None:
    model = tiny_model("mistral")
    model.set_attn_implementation("sdpa")
    model.train()
    model.model.layers[1].eval()
    calls: list[int] = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))

    def state() -> Any:
        return (
            [module.training for module in model.modules()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            {name: value.clone() for name, value in model.state_dict().items()},
            [parameter.requires_grad for parameter in model.parameters()],
            model.config._attn_implementation,
            model.generation_config.to_dict(),
            torch.get_rng_state(),
        )

    before = state()
    run(tmp_path / "run.zarr", model)
    after = state()
    assert calls  # a hook of the user's own runs during the capture
    for one, other in zip(before, after, strict=True):
        if isinstance(one, dict) and "lm_head.weight" in one:
            assert all(torch.equal(one[name], other[name]) for name in one)
        elif isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        else:
            assert one == other
    handle.remove()


def test_a_hook_that_steers_the_model_is_in_the_evidence(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plain = run(tmp_path / "plain.zarr", model, max_new_tokens=1)
    handle = model.model.layers[1].register_forward_hook(lambda _, __, out: out + 3.0)
    steered = run(tmp_path / "steered.zarr", model, max_new_tokens=1)
    handle.remove()
    n = plain["lens_token"].shape[1] - 1
    assert np.array_equal(plain["lens_probability"][:2, :n], steered["lens_probability"][:2, :n])
    assert not np.allclose(plain["lens_probability"][2, :n], steered["lens_probability"][2, :n])


def test_interrupt_keeps_committed_rows_and_says_so(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    steps = 0

    def stop(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 30:
            raise KeyboardInterrupt

    model.lm_head.register_forward_hook(stop)
    with pytest.raises(Interrupted, match=r"rows of capture 0000 are kept .* partial") as caught:
        capture(
            model,
            byte_tokenizer(),
            "Hello there",
            tmp_path / "run.zarr",
            raw=True,
            lens=False,
            max_new_tokens=60,
            temperature=0,
        )
    assert caught.value.exit_code == 130
    found = attnlens.open(tmp_path / "run.zarr")[0]
    assert found.status == "partial"
    assert found.committed > found.n_prompt
    assert np.allclose(found.attention.rows([found.committed - 1]).sum(-1), 1, atol=5e-3)


def test_rows_before_a_failure_are_kept_though_their_readings_are_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps, several = tiny_model("llama"), 0, LaneReader.several
    model.generation_config.eos_token_id = None

    def late(self: LaneReader, *given: Any) -> Any:
        time.sleep(0.2)
        return several(self, *given)

    def fail(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise RuntimeError("overheated")

    session = Session.capture

    def failing(self: Session, *given: Any, **named: Any) -> Any:
        model.model.embed_tokens.register_forward_hook(fail)
        return session(self, *given, **named)

    monkeypatch.setattr(LaneReader, "several", late)
    monkeypatch.setattr(Session, "capture", failing)
    with pytest.raises(ModelError, match="overheated"):
        run(tmp_path / "run.zarr", model, max_new_tokens=9)
    found = attnlens.open(tmp_path / "run.zarr")[0]
    assert found.status == "partial"
    assert found.committed >= found.n_prompt - 1 > 0
    assert (found["lens_token"][:, : found.committed] >= 0).all()


def test_append_adds_a_capture_and_touches_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    run(path)
    before = {file: file.read_bytes() for file in (path / "0000").rglob("*") if file.is_file()}
    capture(tiny_model("gpt2"), byte_tokenizer(), "Another", path, raw=True, max_new_tokens=2, append=True)
    assert attnlens.open(path).ids == ["0000", "0001"]
    assert {file: file.read_bytes() for file in (path / "0000").rglob("*") if file.is_file()} == before


def test_xarray_opens_a_capture_with_its_coordinates(tmp_path: Path) -> None:
    data = run(tmp_path / "run.zarr")
    with xarray.open_zarr(tmp_path / "run.zarr", group="0000") as tree:
        row = tree["attention_weight"].sel(layer=2, query=20).values
        assert "token_text" in tree.coords
        assert tree["layer"].values.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(row, data["attention_weight"][2, :, 20])


def test_nothing_says_where_it_ran(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "secret-folder" / "my-model")
    loaded = type(model).from_pretrained(tmp_path / "secret-folder" / "my-model")
    run(tmp_path / "run.zarr", loaded)
    assert attnlens.open(tmp_path / "run.zarr")[0].metadata.model.id == "my-model"
    for file in (tmp_path / "run.zarr").rglob("zarr.json"):
        assert "secret-folder" not in file.read_text()
        assert str(tmp_path) not in file.read_text()


def test_layers_without_attention_are_absent_not_zero(tmp_path: Path) -> None:
    config = transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention", "conv"])
    torch.manual_seed(0)
    data = run(tmp_path / "run.zarr", transformers.Lfm2ForCausalLM(config).eval())
    found = attnlens.open(tmp_path / "run.zarr")[0]
    assert [layer.kind for layer in found.metadata.model.layers] == ["none", "full", "none"]
    assert np.isnan(data["attention_weight"][[0, 2]]).all()
    assert np.isnan(data["attention_max"][:, [0, 2]]).all()
    fed = found.n_fed
    assert not np.isnan(data["attention_weight"][1, :, :fed]).any()
    assert (data["lens_token"][:, :fed] >= 0).all()
    assert verify(tmp_path / "run.zarr").problems == []
    assert render(tmp_path / "run.zarr", tmp_path / "pictures").count > 0


def test_memory_that_runs_out_beside_the_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LaneReader, "every", lambda *_: torch.empty(1 << 55))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: out of memory at token .*; shorten the text"):
        run(tmp_path / "run.zarr")
