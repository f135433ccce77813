"""Models that call things by older or newer names than the installed libraries do."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.utils import ModelOutput

import attnlens
from attnlens.capture import capture
from attnlens.capture.kv_cache import give, taken
from families import CACHE, byte_tokenizer, tiny_model

PROMPT = "The quick brown fox"
N_NEW = 6


@dataclass
class NewerOutput(ModelOutput):  # type: ignore[misc]
    """As of transformers 5.24: the field is `cache`, and asking for the older names warns."""

    logits: Any = None
    cache: Any = None
    attentions: Any = None

    @property
    def past_key_values(self) -> Any:
        warnings.warn("`past_key_values` is deprecated", FutureWarning, stacklevel=2)
        return self.cache


class NewerLlama(LlamaForCausalLM):  # type: ignore[misc]
    """As of transformers 5.24: takes `cache`, takes the older name with a warning, returns `cache`."""

    def forward(self, input_ids: Any = None, cache: Any = None, use_cache: bool = False, **kwargs: Any) -> NewerOutput:
        if "past_key_values" in kwargs:
            warnings.warn("`past_key_values` is deprecated", FutureWarning, stacklevel=2)
            cache = kwargs.pop("past_key_values")
        out = super().forward(input_ids, use_cache=use_cache, **{CACHE: cache}, **kwargs)
        return NewerOutput(logits=out.logits, cache=getattr(out, CACHE), attentions=out.attentions)


@dataclass
class OlderOutput:
    """As code of a checkpoint may return it: no output of transformers."""

    logits: Any
    past_key_values: Any
    attentions: Any = None


class OlderLlama(LlamaForCausalLM):  # type: ignore[misc]
    """As code of a checkpoint was written for transformers 5.23 and older: knows no `cache`."""

    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False, **kwargs: Any) -> Any:
        assert "cache" not in kwargs
        out = super().forward(input_ids, use_cache=use_cache, **{CACHE: past_key_values}, **kwargs)
        return OlderOutput(out.logits, getattr(out, CACHE), out.attentions)


class Wrapped(nn.Module):
    """Hands on what it is given, as PEFT does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


def llama_of(kind: type[LlamaForCausalLM]) -> Any:
    plain = tiny_model("llama")
    model = kind(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize("kind", [NewerLlama, OlderLlama])
def test_generates_with_the_cache_by_the_name_the_model_knows(kind: type[LlamaForCausalLM], tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    expected = tiny_model("llama").generate(ids, do_sample=False, max_new_tokens=N_NEW, min_new_tokens=N_NEW)
    report = capture(
        llama_of(kind), tokenizer, PROMPT, tmp_path / "run.zarr", raw=True, max_new_tokens=N_NEW, temperature=0
    )
    found = attnlens.open(tmp_path / "run.zarr")[0]
    assert report.n_fed == ids.shape[1] + N_NEW - 1
    assert found.token_id.tolist() == expected[0].tolist()


@pytest.mark.parametrize(("kind", "name"), [(NewerLlama, "cache"), (OlderLlama, "past_key_values")])
def test_the_name_is_found_behind_a_wrapper(kind: type[LlamaForCausalLM], name: str) -> None:
    kept = object()
    assert give(llama_of(kind), kept) == {name: kept}
    assert give(Wrapped(llama_of(kind)), kept) == {name: kept}


def test_a_forward_that_says_nothing_is_given_the_name_of_the_installed_transformers() -> None:
    class Silent(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    assert give(Silent(), None) == {CACHE: None}


def test_an_output_without_a_cache_has_none_and_is_not_asked_by_older_names() -> None:
    assert taken(NewerOutput(logits=torch.zeros(1))) is None
    assert taken(OlderOutput(torch.zeros(1), None)) is None
