"""Models outside transformers' attention functions: what they report is stored, once it passed the checks of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
import zarr
from transformers import dynamic_module_utils
from transformers.models.bloom import modeling_bloom
from transformers.models.gptj import modeling_gptj

import attnlens
from attnlens.capture import capture
from attnlens.capture.models import load
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


with_own_attention = pytest.mark.skipif(
    not hasattr(modeling_gptj.GPTJAttention, "_attn"),
    reason="here GPT-J goes through transformers' attention functions (since 5.24 or so)",
)
"""The tests that put another attention into GPT-J."""


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


def weights_of(query: Any, key: Any, mask: Any) -> Any:
    scores = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(-1)


def sharper(weights: Any) -> Any:
    return weights**2 / (weights**2).sum(-1, keepdim=True)


HONEST: dict[str, Callable[[Any, Any], Any]] = {
    "einsum": lambda w, v: torch.einsum("bhqk,bhkd->bhqd", w, v),
    "transposed": lambda w, v: (v.transpose(-1, -2) @ w.transpose(-1, -2)).transpose(-1, -2),
    "head by head": lambda w, v: torch.stack([w[:, head] @ v[:, head] for head in range(w.shape[1])], 1),
    "queries before heads": lambda w, v: torch.einsum("bqhk,bhkd->bhqd", w.transpose(1, 2).contiguous(), v),
    "with a gate of each token": lambda w, v: (w @ v) * v[:, :, -w.shape[2] :].tanh(),
}
LYING: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "other weights": (lambda w, v: sharper(w) @ v, "not what its values are mixed with: no product"),
    "other heads": (lambda w, v: w.flip(1) @ v, "not what its values are mixed with: no product"),
    "one other head": (lambda w, v: torch.cat([w[:, :3] @ v[:, :3], sharper(w[:, 3:]) @ v[:, 3:]], 1), "no product"),
    "a product for show": (lambda w, v: w @ v * 0 + sharper(w) @ v, "changes nothing"),
    "half of other weights": (lambda w, v: (w @ v + sharper(w) @ v) / 2, "something else goes from token to token"),
    "a running mean": (lambda w, v: w @ v + v.cumsum(2) / 9, "something else goes from token to token"),
    "nothing mixed": (lambda w, v: w @ v * 0 + v, "changes nothing"),
    "no product": (lambda w, v: (sharper(w)[..., None] * v[:, :, None]).sum(-2), "no product of matrices"),
}


def mixing_with(mix: Callable[[Any, Any], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPT-J whose attention reports its weights and mixes its values by `mix`."""

    def attention(self: Any, query: Any, key: Any, value: Any, attention_mask: Any = None) -> Any:
        weights = weights_of(query, key, attention_mask)
        return mix(weights, value), weights

    monkeypatch.setattr(modeling_gptj.GPTJAttention, "_attn", attention)
    return tiny("GPTJForCausalLM")


@with_own_attention
@pytest.mark.parametrize("way", HONEST)
def test_reported_weights_that_the_values_are_mixed_with(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = mixing_with(HONEST[way], monkeypatch), tmp_path / "run.zarr"
    capture(model, byte_tokenizer(), "The quick fox", path, raw=True, max_new_tokens=2)
    checks: dict[str, Any] = {check.name: check for check in attnlens.open(path)[0].metadata.self_checks}
    assert checks["probe: attention × value"].value <= checks["probe: attention × value"].limit
    assert verify(path).passed


@with_own_attention
@pytest.mark.parametrize("way", LYING)
def test_reported_weights_that_the_values_are_not_mixed_with(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix, words = LYING[way]
    with pytest.raises(ModelError, match=rf"GPTJForCausalLM: transformer\.h\.0: .*{words}"):
        capture(mixing_with(mix, monkeypatch), byte_tokenizer(), "The quick fox", tmp_path / "run.zarr", raw=True)
    assert not (tmp_path / "run.zarr").exists()


REMOTE = """
import torch
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.models.gptj.modeling_gptj import GPTJAttention


class ShyConfig(GPTJConfig):
    model_type = "shy"


class ShyAttention(GPTJAttention):
    def _attn(self, query, key, value, attention_mask=None):
        output, weights = super()._attn(query, key, value, attention_mask)
        seen = torch.ones_like(weights).tril(weights.shape[-1] - weights.shape[-2])
        return output, seen / seen.sum(-1, keepdim=True)


class ShyForCausalLM(GPTJForCausalLM):
    config_class = ShyConfig

    def __init__(self, config):
        super().__init__(config)
        for block in self.transformer.h:
            block.attn.__class__ = ShyAttention
"""


@with_own_attention
def test_remote_code_that_reports_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "shy"
    tiny("GPTJForCausalLM").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "modeling_shy.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "modeling_shy.ShyConfig", "AutoModelForCausalLM": "modeling_shy.ShyForCausalLM"}
    config |= {"model_type": "shy", "architectures": ["ShyForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    with pytest.raises(ModelError, match=r"ShyForCausalLM: transformer\.h\.0: .*not what its values are mixed with"):
        capture(loaded.model, loaded.tokenizer, "The quick fox", tmp_path / "run.zarr", raw=True)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_weights_of_whole_numbers(quantize: Any, tmp_path: Path) -> None:
    """Which features are rounded to 8 bits depends on all tokens together: that mixes nothing."""
    pytest.importorskip("bitsandbytes")
    tiny("BloomForCausalLM").save_pretrained(tmp_path / "bloom")
    byte_tokenizer().save_pretrained(tmp_path / "bloom")
    loaded = load(str(tmp_path / "bloom"), dtype="float32", device="cpu", quantize=quantize)
    path = tmp_path / "run.zarr"
    capture(loaded.model, loaded.tokenizer, "The quick fox jumps over", path, raw=True, completion=" it")
    data: Any = zarr.open_group(path, mode="r")["0000"]
    with torch.no_grad():
        own = loaded.model(torch.from_numpy(data["token_id"][:])[None].long(), output_attentions=True).attentions
    for layer, weights in enumerate(own):
        np.testing.assert_allclose(data["attention_weight"][layer], weights[0].numpy(), atol=2.5e-4)


FALCONS = {
    "alibi": {"alibi": True},
    "heads of their own": {"multi_query": False},
    "groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "one after the other": {"parallel_attn": False, "multi_query": False},
}


@pytest.mark.parametrize("kind", FALCONS)
def test_every_falcon_passes(kind: str, tmp_path: Path) -> None:
    config = TINY["FalconForCausalLM"]()
    config.update(FALCONS[kind])
    model = t.FalconForCausalLM._from_config(config, attn_implementation="eager").eval()
    capture(model, byte_tokenizer(), "The quick fox", tmp_path / "run.zarr", raw=True, max_new_tokens=2)
    assert verify(tmp_path / "run.zarr").passed
