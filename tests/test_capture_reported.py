"""Models outside transformers' attention functions: what they report is stored, once it passed the checks of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
import zarr
from transformers.models.bloom import modeling_bloom

from attnlens.capture import capture
from attnlens.schemas.errors import ModelError
from attnlens.store.verify import verify
from families import GPT2, VOCABULARY, byte_tokenizer

TINY: dict[str, Callable[[], Any]] = {
    "BloomForCausalLM": lambda: t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "FalconForCausalLM": lambda: t.FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "GPTNeoForCausalLM": lambda: t.GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "GPTJForCausalLM": lambda: t.GPTJConfig(**{**GPT2, "n_layer": 2}, rotary_dim=4),
}


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    model = getattr(t, name)._from_config(TINY[name](), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("name", TINY)
def test_rows_are_the_models_own(name: str, tmp_path: Path) -> None:
    model, path = tiny(name), tmp_path / "run.zarr"
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    report = capture(model, byte_tokenizer(), "The quick fox", path, raw=True, max_new_tokens=4, temperature=0)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert verify(path).problems == []
    data: Any = zarr.open_group(path, mode="r")["0000"]
    ids, fed = data["token_id"][:].tolist(), report.n_fed
    with torch.no_grad():
        out = model(torch.tensor([ids[:fed]]), use_cache=False, output_attentions=True)
    for layer, own in enumerate(out.attentions):
        assert np.abs(data["attention_weight"][layer, :, :fed, :fed] - own[0].numpy()).max() <= 3e-4
    assert ids[report.n_prompt :] == out.logits[0, report.n_prompt - 1 :].argmax(-1).tolist()
    top = torch.softmax(out.logits[0], -1).max(-1).values.numpy()
    assert np.abs(data["lens_probability"][-1, :fed, 0] - top).max() < 1e-5
    kinds = [row["kind"] for row in data.attrs["attnlens"]["model"]["layers"]]
    assert kinds == (["full", "sliding"] if name == "GPTNeoForCausalLM" else ["full", "full"])


def test_report_of_scores_that_are_no_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_bloom.BloomAttention.forward

    def scores(self: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = plain(self, *args, **kwargs)[:2]
        return output, None if weights is None else weights * 3

    monkeypatch.setattr(modeling_bloom.BloomAttention, "forward", scores)
    with pytest.raises(ModelError, match=r"BloomForCausalLM: .*do not sum to 1"):
        capture(tiny("BloomForCausalLM"), byte_tokenizer(), "The quick fox", tmp_path / "run.zarr", raw=True)
    assert not (tmp_path / "run.zarr").exists()


def test_report_that_looks_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_bloom.BloomAttention.forward

    def ahead(self: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = plain(self, *args, **kwargs)[:2]
        return output, None if weights is None else torch.full_like(weights, 1 / weights.shape[-1])

    monkeypatch.setattr(modeling_bloom.BloomAttention, "forward", ahead)
    with pytest.raises(ModelError, match="later tokens"):
        capture(tiny("BloomForCausalLM"), byte_tokenizer(), "The quick fox", tmp_path / "run.zarr", raw=True)
