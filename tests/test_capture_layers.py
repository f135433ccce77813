"""Models whose layers are not all alike, or not called once each: what is stored is what the model's own eager says."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
import zarr

import attnlens
from attnlens.capture import capture
from attnlens.capture.configuration import refuse_configuration
from attnlens.capture.layer_table import seen_window
from attnlens.render.pictures import render
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import LayerInfo
from attnlens.store.verify import verify
from families import SMALL, byte_tokenizer

SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
MLA = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6}


def loud(model: Any) -> Any:
    """Weights larger than usual, so that attention is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 or name.endswith("sinks"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def captured(model: Any, path: Path, **options: Any) -> Any:
    capture(model, byte_tokenizer(), "The quick brown fox jumps", path, raw=True, temperature=0, **options)
    assert verify(path).problems == []
    return zarr.open_group(path, mode="r")["0000"]


def own_rows(model: Any, ids: list[int]) -> list[np.ndarray[Any, Any]]:
    """The model's own output_attentions (head, query, key) of one pass."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [w[0].numpy() for w in model(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions]


def laguna() -> Any:
    config = t.LagunaConfig(
        **{**SMALL, "num_hidden_layers": 2},
        head_dim=8,
        sliding_window=7,
        layer_types=SLIDING_AND_FULL,
        num_attention_heads_per_layer=[2, 4],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    return loud(t.LagunaForCausalLM(config))


@pytest.mark.skipif(not hasattr(t, "LagunaConfig"), reason="this transformers has no Laguna")
def test_heads_that_a_layer_does_not_have_are_absent(tmp_path: Path) -> None:
    path, model = tmp_path / "run.zarr", laguna()
    data = captured(model, path, max_new_tokens=4)
    ids = data["token_id"][:].tolist()
    weights, own = data["attention_weight"][:], own_rows(model, ids[:-1])
    fed = len(ids) - 1
    assert [rows.shape[0] for rows in own] == [2, 4]
    assert np.isnan(weights[0, 2:]).all()
    for layer, rows in enumerate(own):
        assert np.abs(weights[layer, : rows.shape[0], :fed, :fed] - rows).max() <= 3e-4
    found = attnlens.open(path)[0]
    assert np.abs(found.attention.reduced("mean", [3])[0, 0, :4] - own[0][:, 3, :4].mean(axis=0)).max() <= 6e-4
    assert np.abs(found.attention.reduced("max", [3])[1, 0, :4] - own[1][:, 3, :4].max(axis=0)).max() <= 6e-4
    assert render(path, tmp_path / "pictures").count > 0


@pytest.mark.skipif(
    "ALL_ATTENTION_FUNCTIONS"
    not in Path(inspect.getfile(t.DiffLlamaConfig)).with_name("modeling_diffllama.py").read_text(),
    reason="the DiffLlama of this transformers goes around its attention functions, and is refused",
)
def test_values_that_are_mixed_in_two_calls_with_the_same_weights(tmp_path: Path) -> None:
    model = loud(t.DiffLlamaForCausalLM(t.DiffLlamaConfig(**SMALL)))
    data = captured(model, tmp_path / "run.zarr", max_new_tokens=3)
    ids = data["token_id"][:-1].tolist()
    for layer, rows in enumerate(own_rows(model, ids)):
        assert np.abs(data["attention_weight"][layer, :, : len(ids), : len(ids)] - rows).max() <= 3e-4


def test_two_attentions_of_different_inputs_in_a_layer_are_refused(tmp_path: Path) -> None:
    config = t.LongcatFlashConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_attention_heads=4, ffn_hidden_size=48, head_dim=4, **MLA,
        moe_topk=2, n_routed_experts=4, zero_expert_num=2, expert_ffn_hidden_size=16, max_position_embeddings=128,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"LongcatFlash.*layers\.0 computes attention more than once"):
        captured(loud(t.LongcatFlashForCausalLM(config)), tmp_path / "run.zarr", max_new_tokens=2)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.skipif(not hasattr(t, "GraniteSWAConfig"), reason="this transformers has no GraniteSWA")
def test_sinks_that_come_after_the_softmax(tmp_path: Path) -> None:
    # The model reports rows from before its sinks. What its values are mixed with has one more term in the softmax.
    model = loud(t.GraniteSWAForCausalLM(t.GraniteSWAConfig(**SMALL)))
    data = captured(model, tmp_path / "run.zarr", token_ids=[])
    ids = data["token_id"][:].tolist()
    queries: list[Any] = []
    modeling = t.models.granite_swa.modeling_granite_swa
    own = modeling.eager_attention_forward

    def noting(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kwargs: Any) -> Any:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = (query @ keys.transpose(2, 3)).double() * scaling + mask.double()
        sink = module.sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        queries.append(torch.softmax(torch.cat([scores, sink], -1), -1)[0, ..., :-1].numpy())
        return own(module, query, key, value, mask, scaling, **kwargs)

    modeling.eager_attention_forward = noting
    try:
        own_rows(model, ids)
    finally:
        modeling.eager_attention_forward = own
    stored = data["attention_weight"][:].astype(np.float64)
    for layer, rows in enumerate(queries):
        assert np.abs(stored[layer] - rows).max() <= 3e-4
    assert (stored.sum(axis=-1) < 0.99).any()
    assert all(row["sinks"] for row in data.attrs["attnlens"]["model"]["layers"])


def test_layers_that_a_text_without_pictures_skips(tmp_path: Path) -> None:
    text = {**SMALL, "cross_attention_layers": [1]}
    text.pop("num_hidden_layers")
    config = t.models.mllama.configuration_mllama.MllamaTextConfig(**text, num_hidden_layers=3)
    model = loud(t.MllamaForCausalLM(config))
    data = captured(model, tmp_path / "run.zarr", max_new_tokens=3)
    assert [row["kind"] for row in data.attrs["attnlens"]["model"]["layers"]] == ["full", "none", "full"]
    assert (data["lens_token"][1] == data["lens_token"][2]).all()  # a skipped layer changes nothing
    assert (data["lens_token"][2] != data["lens_token"][3]).any()


@pytest.mark.skipif(not hasattr(t, "DeepseekV4Config"), reason="this transformers has no DeepseekV4")
def test_keys_that_stand_for_several_tokens_are_refused_by_the_configuration() -> None:
    config = t.DeepseekV4Config(num_hidden_layers=3)
    with pytest.raises(ModelError, match="DeepseekV4ForCausalLM: layer 0 is of type heavily_compressed_attention"):
        refuse_configuration(config, "DeepseekV4ForCausalLM")


LAYER = LayerInfo(index=0, path="l.0", kind="full", n_head=2, n_kv_head=2, key_features=8, value_features=8)


def mask_of(visible: np.ndarray[Any, Any]) -> torch.Tensor:
    """(1, head, query, key) of floats from (head, query, key) of bool."""
    return torch.where(torch.from_numpy(visible)[None], 0.0, torch.finfo(torch.float32).min)


def test_a_window_is_one_only_where_all_rows_and_heads_agree() -> None:
    back = np.arange(12)[:, None] - np.arange(12)
    window = np.repeat(((back >= 0) & (back < 5))[None], 2, axis=0)
    assert seen_window(LAYER, mask_of(window), 12).window == 5
    best = window.copy()
    best[:, -1, 7], best[:, -1, 2] = False, True  # five keys still, but not the last five
    assert seen_window(LAYER, mask_of(best), 12).kind == "full"
    one_head = window.copy()
    one_head[1] = back >= 0
    assert seen_window(LAYER, mask_of(one_head), 12).window is None
    assert seen_window(LAYER, mask_of(np.repeat((back >= 0)[None], 2, axis=0)), 12).kind == "full"
