"""What transformers' own `generate` writes with a tiny model, and the chooser of tokens that is compared with it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from attnlens.capture.sampling import Sampler
from attnlens.capture.settings import Generation
from families import byte_tokenizer, tiny_model

NEW = 14
PROMPT = "abcabcab"


def prompt_ids() -> list[int]:
    found: list[int] = byte_tokenizer().encode(PROMPT)
    return found


def generated(model: Any, prompt: list[int] | None = None, **options: Any) -> list[int]:
    """What transformers' own `generate` writes after the prompt."""
    ids = torch.tensor([prompt or prompt_ids()])
    chosen = {"max_new_tokens": NEW, "do_sample": False, **options}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), tokenizer=byte_tokenizer(), **chosen)
    text: list[int] = out[0, ids.shape[1] :].tolist()
    return text


@cache
def plain_text(seed: int) -> list[int]:
    """The greedy text of the model as it is; it ends at the length only, and is no repetition of one token."""
    text = generated(tiny_model("llama", seed=seed))
    assert len(text) == NEW
    assert len(set(text)) > 4
    return text


def sampler(model: Any, ids: list[int], overrides: dict[str, Any] | None = None, **options: Any) -> Sampler:
    generation = Generation(**{"max_new_tokens": NEW, "temperature": 0.8, "overrides": overrides or {}, **options})
    return Sampler(model, byte_tokenizer(), generation, ids, torch.device("cpu"))
