"""One forward pass of a causal language model over a whole text, and what comes out of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.feeding import CallStyle, Feeder
from attnlens.schemas.errors import ModelError


def attempt(
    model: nn.Module, ids: Tensor, style: CallStyle, *, use_cache: bool = False, last: int | None = None, **more: Any
) -> Any:
    """The model's output for the whole text ids int64 (1, token).

    `last`: how many tokens need logits (None: all). `more` goes to the model as it is.

    Raises:
        ModelError: what the model raised; the cause is chained.
    """
    feeder = Feeder(model, style)
    return feeder.run(feeder.prepare(ids, use_cache=use_cache, last=last, **more))


def logits_of(model: nn.Module, output: Any) -> Tensor:
    """Logits (1, token, vocabulary) of a pass.

    Raises:
        ModelError: the class has no output head.
    """
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{type(model).__name__} gives no logits: it has no output head; load the model as a causal language model "
            "(AutoModelForCausalLM)"
        )
    return logits


def input_device(model: nn.Module) -> torch.device:
    """Where token ids must be."""
    get: Any = getattr(model, "get_input_embeddings", None)
    embeddings = get() if callable(get) else None
    parts = (embeddings, model) if isinstance(embeddings, nn.Module) else (model,)
    for part in parts:
        for parameter in part.parameters():
            if not parameter.is_meta:
                return parameter.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
