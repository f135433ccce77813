"""What the probe compares, what it only records, and what it says of numbers and classes that cannot be captured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
import zarr
from torch import nn

import attnlens
from attnlens.capture import capture, capture_many
from attnlens.capture import tap as tap_module
from attnlens.capture.models import load
from attnlens.schemas.errors import ModelError
from families import GPT2, SMALL, VOCABULARY, byte_tokenizer, tiny_model


def refused(model: Any, path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        capture(model, byte_tokenizer(), "Hello there", path, raw=True, max_new_tokens=2)
    assert not path.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def checks_of(path: Path) -> dict[str, Any]:
    return {check.name: check for check in attnlens.open(path)[0].metadata.self_checks}


def magnify(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turns the last digits of float32 into a tenth, as rounding to 8 bits does at its steps."""
    return (args[0] + 0.1 * torch.remainder((args[0] * 2**22).round(), 2), *args[1:])


def test_a_model_that_magnifies_rounding_is_captured_as_it_is(tmp_path: Path) -> None:
    model, path = tiny_model("llama"), tmp_path / "run.zarr"
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_pre_hook(magnify)
    capture(model, byte_tokenizer(), "Hello there, it is me", path, raw=True, completion=" again")
    checks = checks_of(path)
    assert checks["probe: logits"].value == 0
    assert checks["probe: blocks of rows"].value < 1e-5
    distance = checks["probe: distance to sdpa"]
    assert distance.passed
    assert distance.limit is None
    assert distance.value > 1e-3
    model.set_attn_implementation("eager")
    data: Any = zarr.open_group(path, mode="r")["0000"]
    with torch.no_grad():
        own = model(torch.from_numpy(data["token_id"][:])[None].long(), output_attentions=True).attentions
    for layer, weights in enumerate(own):
        np.testing.assert_allclose(data["attention_weight"][layer], weights[0].numpy(), atol=2.5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "dtype"),
    [
        ("8bit", "auto"),
        pytest.param("8bit", "float32", marks=pytest.mark.nightly),
        pytest.param("4bit", "auto", marks=pytest.mark.nightly),
    ],
)
def test_smollm2_is_captured_quantized(quantize: Any, dtype: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = load("smollm2-135m", dtype=dtype, device="cpu", quantize=quantize)
    path = tmp_path / "run.zarr"
    capture(loaded.model, loaded.tokenizer, "Who is Bob's sister?", path, max_new_tokens=0)
    data: Any = zarr.open_group(path, mode="r")["0000"]
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        own = loaded.model(torch.from_numpy(data["token_id"][:])[None].long(), output_attentions=True).attentions
    fed = attnlens.open(path)[0].n_fed
    for layer, weights in enumerate(own):
        found = data["attention_weight"][layer, :, :fed, :fed]
        np.testing.assert_allclose(found, weights[0, :, :fed, :fed].numpy(), atol=2.5e-4)


def test_a_mistake_in_cutting_blocks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tap_module._cut

    def shifted(mask: Any, first: int, last: int, n_row: int, n_column: int) -> Any:
        return cut(mask, max(0, first - 1), max(0, first - 1) + last - first, n_row, n_column)

    monkeypatch.setattr(tap_module, "_cut", shifted)
    message = refused(tiny_model("llama"), tmp_path / "run.zarr")
    assert "model.layers.0: its attention in blocks of rows differs" in message


def scaled(dtype: torch.dtype, part: str, factor: float) -> Any:
    """A Llama in which the weights of one part are `factor` times as large."""
    model = tiny_model("llama").to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.mul_(factor)
    return model


@pytest.mark.parametrize(
    ("dtype", "part", "factor", "words"),
    [
        (torch.float16, "layers.1.self_attn.q_proj", 3e4, "model.layers.1: what it gives is not finite in float16; "),
        (torch.float16, "layers.1.mlp.up_proj", 6e4, "model.layers.1: what it gives is not finite in float16; "),
        (torch.float16, "lm_head", 6e4, "its logits are not finite in float16; try bfloat16 or float32"),
        (torch.bfloat16, "layers.0.mlp.up_proj", 1e38, "model.layers.0: what it gives is not finite in bfloat16; try"),
        (torch.float32, "embed_tokens", torch.nan, "what goes into model.layers.0 is not finite in float32; its"),
    ],
)
def test_an_overflow_is_called_one(dtype: torch.dtype, part: str, factor: float, words: str, tmp_path: Path) -> None:
    message = refused(scaled(dtype, part, factor), tmp_path / "run.zarr")
    assert message.startswith("LlamaForCausalLM: ")
    assert words in message
    assert ("try bfloat16 or float32" in message) == (dtype == torch.float16)
    assert "later tokens" not in message


def test_an_overflow_of_a_model_that_reports_its_attention(tmp_path: Path) -> None:
    model = t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)).eval()
    with torch.no_grad():
        model.transformer.h[1].self_attention.query_key_value.weight.fill_(torch.nan)
    assert "transformer.h.1: what it gives is not finite in float32" in refused(model, tmp_path / "run.zarr")


def test_an_overflow_that_only_the_cache_has(tmp_path: Path) -> None:
    model = tiny_model("llama")

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return output * torch.nan if output.shape[1] == 1 else output

    model.model.layers[0].mlp.register_forward_hook(after)
    assert "with a cache its logits are not finite in float32" in refused(model, tmp_path / "run.zarr")


VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
OTHERS: dict[str, Callable[[], Any]] = {
    "LlamaForSequenceClassification": lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**SMALL)),
    "LlamaForTokenClassification": lambda: t.LlamaForTokenClassification(t.LlamaConfig(**SMALL)),
    "LlamaForQuestionAnswering": lambda: t.LlamaForQuestionAnswering(t.LlamaConfig(**SMALL)),
    "GPT2ForSequenceClassification": lambda: t.GPT2ForSequenceClassification(t.GPT2Config(**GPT2)),
    "ViTForImageClassification": lambda: t.ViTForImageClassification(t.ViTConfig(**VISION, image_size=32)),
    "SegformerModel": lambda: t.SegformerModel(t.SegformerConfig()),
    "Linear": lambda: nn.Linear(3, 3),
    "str": lambda: "smollm2-135m",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_causal_language_model_is_named(name: str, tmp_path: Path) -> None:
    model = OTHERS[name]()
    message = refused(model.eval() if isinstance(model, nn.Module) else model, tmp_path / "run.zarr")
    assert name in message
    assert "causal language model" in message


def test_capture_many_says_so_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ViTForImageClassification takes pixel_values"):
        capture_many(OTHERS["ViTForImageClassification"](), byte_tokenizer(), ["Hello"], tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()
