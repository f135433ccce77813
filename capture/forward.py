"""One forward pass of a causal language model over new tokens, with whatever cache the model itself makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from attnlens.capture.kv_cache import accepted, give
from attnlens.schemas.errors import AttnlensError, ModelError


@dataclass(frozen=True, kw_only=True)
class CallStyle:
    """How this model wants to be called.

    keeps_logits: `logits_to_keep` works, so a long prompt need not make logits of all its tokens.
    cached_positions: with a cache it must be told the positions of the new tokens (found by the probe).
    reports: its attention is had by asking for `output_attentions`.
    given_cache: the cache that it would make itself has too few layers, so it is given one that grows.
    """

    keeps_logits: bool
    cached_positions: bool = False
    reports: bool = False
    given_cache: bool = False


def style_of(model: nn.Module) -> CallStyle:
    """What the model's signature says; wrappers (PEFT) are looked through."""
    return CallStyle(keeps_logits=accepted(model, "logits_to_keep") is not None)


def forward(
    model: nn.Module,
    ids: Tensor,
    style: CallStyle,
    *,
    cache: Any = None,
    first: int = 0,
    use_cache: bool = False,
    last: int | None = None,
    **more: Any,
) -> Any:
    """The model's output for ids int64 (1, token), the first of which stands at position `first`.

    `last`: how many tokens need logits (None: all).
    """
    kwargs: dict[str, Any] = {"input_ids": ids, "use_cache": use_cache, **more}
    if style.reports:
        kwargs["output_attentions"] = True
    if cache is not None:
        kwargs |= give(model, cache)
        if style.cached_positions:
            kwargs["position_ids"] = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
    elif use_cache and style.given_cache:
        kwargs |= give(model, DynamicCache())
    if last is not None and style.keeps_logits:
        kwargs["logits_to_keep"] = last
    return model(**kwargs)


def attempt(model: nn.Module, ids: Tensor, style: CallStyle, **options: Any) -> Any:
    """`forward`, where trouble inside the model becomes one line that names it.

    Raises:
        ModelError: what the model raised; the cause is chained.
    """
    try:
        return forward(model, ids, style, **options)
    except AttnlensError:
        raise
    except Exception as error:  # any model code may run here
        if is_out_of_memory(error):
            raise ModelError(
                f"{type(model).__name__}: out of memory on {ids.shape[1]} tokens; shorten the text, or try --quantize "
                "or a smaller --dtype"
            ) from error
        reason = " ".join(str(error).split()) or "no message"
        raise ModelError(
            f"{type(model).__name__} fails on {ids.shape[1]} plain token ids: {type(error).__name__}: {reason}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: a GPU's, Python's, or that of torch on a processor, which has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


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
