"""Is it a causal language model at all? Said in one line that names the class, before anything else is tried."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from attnlens.schemas.errors import ModelError

NEEDED = "load a causal language model (AutoModelForCausalLM)"


def check_model(model: Any) -> None:
    """That it is a model, and takes token ids.

    Raises:
        ModelError: as said.
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is of class {name}, expected a torch module; {NEEDED}")
    takes = getattr(model, "main_input_name", "input_ids")
    if takes != "input_ids" and "input_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(f"{name} takes {takes}, not token ids; {NEEDED}")
    try:
        _embeddings(model)
    except NotImplementedError:
        raise ModelError(f"{name} has no input embeddings of token ids; {NEEDED}") from None


def check_logits(model: nn.Module, logits: Tensor, ids: Tensor) -> None:
    """That logits are (1, token, vocabulary) for ids (1, token), the vocabulary's and not those of some labels.

    Raises:
        ModelError: as said.
    """
    name = type(model).__name__
    n_token, highest = ids.shape[1], int(ids.max())
    if logits.dim() != 3 or logits.shape[:2] != (1, n_token):
        raise ModelError(
            f"{name} gives logits {tuple(logits.shape)} for {n_token} tokens, expected (1, {n_token}, vocabulary); "
            f"{NEEDED}"
        )
    n_label = getattr(getattr(model, "config", None), "num_labels", None)
    weight = getattr(_embeddings(model), "weight", None)
    n_id = weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else 0
    if (size := logits.shape[2]) <= highest or (size == n_label and size < n_id):
        raise ModelError(f"{name} gives {size} numbers a token, fewer than there are tokens to choose from; {NEEDED}")


def _embeddings(model: nn.Module) -> Any:
    """What turns ids into vectors, where the model says so."""
    get: Any = getattr(model, "get_input_embeddings", None)
    return get() if callable(get) else None
