"""What cannot be stored truthfully is refused by name, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from transformers.models.llama import modeling_llama

import attnlens
from attnlens.capture import capture
from attnlens.schemas.errors import AttnlensError, InputError, ModelError
from attnlens.store.verify import verify
from families import CACHE, GPT2, SMALL, VOCABULARY, byte_tokenizer, tiny_model


def refused(model: Any, path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        capture(model, byte_tokenizer(), "Hello there", path, raw=True, max_new_tokens=2)
    assert not path.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layers_that_have_no_attention(tmp_path: Path) -> None:
    config = t.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    message = refused(t.MambaForCausalLM(config).eval(), tmp_path / "run.zarr")
    assert "MambaForCausalLM" in message
    assert "attention functions" in message


def test_report_that_is_rounded(tmp_path: Path) -> None:
    config = t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    model = t.BloomForCausalLM(config).to(torch.bfloat16).eval()
    assert "dtype='float32'" in refused(model, tmp_path / "run.zarr")


def test_class_without_an_output_head(tmp_path: Path) -> None:
    message = refused(t.LlamaModel(t.LlamaConfig(**SMALL)), tmp_path / "run.zarr")
    assert "LlamaModel" in message
    assert "output head" in message


def test_encoder_decoder(tmp_path: Path) -> None:
    config = t.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    assert "T5ForConditionalGeneration" in refused(t.T5ForConditionalGeneration(config), tmp_path / "run.zarr")


def attention_with(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    """Llama's attention whose call of the attention function is changed."""
    plain = modeling_llama.LlamaAttention.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(self, *args, **change(kwargs))

    return forward


def llama_with(change: Callable[[dict[str, Any]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", attention_with(change))
    return tiny_model("llama")


def test_tensor_argument_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama_with(lambda kwargs: {**kwargs, "position_bias": torch.zeros(1, 4, 1, 1)}, monkeypatch)
    message = refused(model, tmp_path / "run.zarr")
    assert "'position_bias'" in message
    assert "model.layers.0" in message


def test_tensor_argument_inside_a_tuple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama_with(lambda kwargs: {**kwargs, "block_indices": ([torch.zeros(3)], None)}, monkeypatch)
    assert "'block_indices'" in refused(model, tmp_path / "run.zarr")


def test_sinks_for_each_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama_with(lambda kwargs: {**kwargs, "sinks": torch.zeros(1, 4, 16, 1)}, monkeypatch)
    assert "'sinks'" in refused(model, tmp_path / "run.zarr")


def test_mask_that_lets_tokens_look_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_mask(kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "attention_mask": torch.zeros_like(kwargs["attention_mask"])}

    message = refused(llama_with(open_mask, monkeypatch), tmp_path / "run.zarr")
    assert "later tokens" in message


def test_no_mask_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(llama_with(lambda kwargs: {**kwargs, "attention_mask": None}, monkeypatch), tmp_path / "run.zarr")
    assert "mask" in message


def test_weights_that_the_values_are_not_mixed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An eager function that reports weights from before what it really applies (as one family's does with its sinks).
    own = modeling_llama.eager_attention_forward

    def lying(*args: Any, **kwargs: Any) -> Any:
        output, weights = own(*args, **kwargs)
        return output * 0.5, weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", lying)
    assert "values are mixed" in refused(tiny_model("llama"), tmp_path / "run.zarr")


def test_layers_that_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_llama.LlamaDecoderLayer.forward

    model = tiny_model("llama")
    first, looped = model.model.layers[0], model.model.layers[1]

    def again(self: Any, hidden_states: Any, **kwargs: Any) -> Any:
        out = plain(self, hidden_states, **{**kwargs, CACHE: kwargs.get(CACHE)})
        return first(out, **{**kwargs, CACHE: None}) if self is looped else out

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", again)
    message = refused(model, tmp_path / "run.zarr")
    assert "model.layers.0" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"completion": "a", "token_ids": [5]}, "one of them"),
        ({"token_ids": [VOCABULARY + 7]}, str(VOCABULARY + 7)),
        ({"prompt": ""}, "empty"),
        ({"prompt": "x" * 200}, "context holds 128"),
    ],
)
def test_inputs_that_cannot_be_used(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    arguments = {"prompt": "Hello", "store": tmp_path / "run.zarr", "raw": True, **options}
    with pytest.raises(InputError, match=words):
        capture(tiny_model("gpt2"), byte_tokenizer(), **arguments)
    assert not (tmp_path / "run.zarr").exists()


def test_generation_settings_that_would_be_ignored(tmp_path: Path) -> None:
    model = t.GPT2LMHeadModel(t.GPT2Config(**GPT2)).eval()
    model.generation_config.guidance_scale = 2.0
    with pytest.raises(AttnlensError, match=r"guidance_scale=2\.0"):
        capture(model, byte_tokenizer(), "Hello", tmp_path / "run.zarr", raw=True)


def spoilt(kind: str, dtype: torch.dtype) -> Any:
    """A GPT-2 that overflows at token 200 only, which the probe does not see."""
    model = tiny_model("gpt2").to(dtype)
    with torch.no_grad():
        if kind == "attention":
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
            model.transformer.wte.weight[200] = torch.nan
        else:  # tied: the token's own logit
            model.transformer.wte.weight[200] = 6e4
    return model


@pytest.mark.parametrize(
    ("kind", "dtype", "attention", "said"),
    [
        ("lens", torch.float16, "dense", "at token 20 the logits of the lens at depth 0 are not finite in float16; "),
        ("attention", torch.float16, "dense", "transformer.h.0: its attention is not finite in float16; try bfloat16"),
        ("attention", torch.bfloat16, "qk", "transformer.h.0: its queries or keys are not finite in bfloat16; try flo"),
        ("attention", torch.float32, "dense", "transformer.h.0: its attention is not finite in float32; its numbers o"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_an_overflow_that_comes_late(
    kind: str, dtype: torch.dtype, attention: str, said: str, given: bool, tmp_path: Path
) -> None:
    text, path = [*range(10, 30), 200, *range(10, 30)], tmp_path / "run.zarr"
    options: dict[str, Any] = {"token_ids": text[18:]} if given else {"max_new_tokens": 2}
    with pytest.raises(ModelError) as caught:
        capture(
            spoilt(kind, dtype), byte_tokenizer(), text[:18] if given else text, path, attention=attention, **options
        )
    assert str(caught.value).startswith(said)
    assert ("lens=False" in str(caught.value)) == (kind == "lens")
    (left,) = attnlens.open(path)
    assert left.status == "failed"
    assert not verify(path).problems


def test_a_lens_that_overflows_is_left_out_on_request(tmp_path: Path) -> None:
    text = [*range(10, 30), 200, *range(10, 30)]
    capture(
        spoilt("lens", torch.float16), byte_tokenizer(), text[:5], tmp_path / "run.zarr", token_ids=text[5:], lens=False
    )
    assert attnlens.open(tmp_path / "run.zarr")[0].status == "complete"
