"""A text goes into a model pass by pass, each pass prepared as the model's own generation prepares it.

Classes change there what they compute: positions that they would not count by themselves, keys that are dropped and
made again once a text has passed a boundary (Phi-3's long rope). So the model is asked, with transformers' own
bookkeeping between the passes. Models without it, or whose preparation does not work, are called plainly.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin

from attnlens.capture.kv_cache import accepted, give, taken
from attnlens.schemas.errors import AttnlensError, ModelError, Setting

_PREPARE = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
"""What this version of transformers says while it prepares: `next_sequence_length`, or `cache_position` before that."""


@dataclass(frozen=True, kw_only=True)
class CallStyle:
    """How this model wants to be called.

    keeps_logits: `logits_to_keep` works, so a long prompt need not make logits of all its tokens.
    prepared: its own `prepare_inputs_for_generation` prepares every pass.
    cached_positions: called plainly, with a cache it must be told the positions of the new tokens (found by the probe).
    reports: its attention is only given on request, by `output_attentions`.
    given_cache: the cache that it would make itself has too few layers, so it is given one that grows.
    """

    keeps_logits: bool
    prepared: bool = False
    cached_positions: bool = False
    reports: bool = False
    given_cache: bool = False


def style_of(model: nn.Module) -> CallStyle:
    """What the model's signature says; wrappers (PEFT) are looked through."""
    return CallStyle(
        keeps_logits=accepted(model, "logits_to_keep") is not None,
        prepared=_generating(model) is not None and hasattr(model, "prepare_inputs_for_generation"),
    )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass that is ready to run.

    n_row: tokens that it feeds, the last ones of the text; more than are new where the model feeds earlier ones again.
    fresh: no keys of earlier passes are used.
    """

    inputs: dict[str, Any]
    n_row: int
    fresh: bool


class Feeder:
    """Feeds one text. `prepare` the next tokens, `run` the pass, and so on; `cache` is what the model keeps then."""

    def __init__(self, model: nn.Module, style: CallStyle) -> None:
        self._model, self._style = model, style
        self._ids: Tensor | None = None
        self._kwargs: dict[str, Any] = {}
        self.cache: Any = None

    def prepare(self, ids: Tensor, *, use_cache: bool = False, last: int | None = None, **more: Any) -> Pass:
        """A pass over the next tokens int64 (1, token).

        `last`: how many tokens need logits (None: all). `more` goes to the model as it is.

        Raises:
            ModelError: what the model raised; or it feeds other tokens than those of the text.
        """
        before, self._ids = self._ids, ids if self._ids is None else torch.cat([self._ids, ids], dim=1)
        with named_trouble(self._model, ids.shape[1]):
            if self._style.prepared:
                inputs = self._prepared(ids.shape[1], use_cache=use_cache, first=before is None)
            else:
                inputs = self._plain(ids, 0 if before is None else before.shape[1], use_cache=use_cache)
        if self._style.reports:
            more["output_attentions"] = True
        inputs.pop("logits_to_keep", None)
        if last is not None and self._style.keeps_logits:
            inputs["logits_to_keep"] = last
        fresh = before is None or not any(value is self.cache for value in inputs.values())
        n_row = self._rows(inputs.get("input_ids"), ids.shape[1], fresh=fresh)
        return Pass(inputs={**inputs, **more}, n_row=n_row, fresh=fresh)

    def run(self, step: Pass) -> Any:
        """The model's output of a pass.

        Raises:
            ModelError: what the model raised; the cause is chained.
        """
        with named_trouble(self._model, step.n_row):
            output = self._model(**step.inputs)
            self.cache = taken(output) if step.inputs.get("use_cache") else None
            if self._style.prepared and self.cache is not None:
                model: Any = self._model
                self._kwargs = model._update_model_kwargs_for_generation(output, self._kwargs, is_encoder_decoder=False)
                if not any(value is self.cache for value in self._kwargs.values()):  # it knows another name for it
                    self._kwargs |= give(self._model, self.cache)
        return output

    def _plain(self, ids: Tensor, first: int, *, use_cache: bool) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": use_cache}
        if self.cache is not None:
            inputs |= give(self._model, self.cache)
            if self._style.cached_positions:
                inputs["position_ids"] = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
        elif use_cache and self._style.given_cache:
            inputs |= give(self._model, DynamicCache())
        return inputs

    def _prepared(self, n_new: int, *, use_cache: bool, first: bool) -> dict[str, Any]:
        model: Any = self._model
        assert self._ids is not None
        if first:
            self._kwargs = first_arguments(self._model, self._ids, use_cache=use_cache)
            if use_cache and self._style.given_cache:
                self._kwargs |= give(self._model, DynamicCache())
            prepared = model.prepare_inputs_for_generation(self._ids, is_first_iteration=True, **self._kwargs)
        else:
            prepared = model.prepare_inputs_for_generation(self._ids, **next_arguments(n_new), **self._kwargs)
        return {**prepared, "return_dict": True}

    def _rows(self, fed: Any, n_new: int, *, fresh: bool) -> int:
        """How many tokens are fed.

        Raises:
            ModelError: they are not the last ones of the text, or their keys would be twice in the cache.
        """
        assert self._ids is not None
        name = type(self._model).__name__
        if not isinstance(fed, Tensor) or fed.dim() != 2 or not _same(fed, self._ids[:, -fed.shape[1] :]):
            raise ModelError(f"{name}: its prepare_inputs_for_generation feeds something else than the text's tokens")
        if not fresh and fed.shape[1] != n_new:
            raise ModelError(
                f"{name}: its prepare_inputs_for_generation feeds {fed.shape[1]} tokens where {n_new} are new and the "
                "keys of the others are kept; its rows cannot be told apart"
            )
        return int(fed.shape[1])


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and (one.is_meta or torch.equal(one, other))


def first_arguments(model: nn.Module, ids: Tensor, *, use_cache: bool) -> dict[str, Any]:
    """What transformers' `generate` tells a model's preparation of the first pass over ids int64 (1, token).

    No token is padding, whatever its id: a text that was given is seen whole.
    """
    own: Any = _generating(model)
    kwargs: dict[str, Any] = {"use_cache": use_cache}
    if "cache_position" in _PREPARE:
        if accepted(model, "attention_mask"):
            kwargs["attention_mask"] = torch.ones_like(ids)
        kwargs = own._get_initial_cache_position(ids.shape[1], ids.device, kwargs)
    if accepted(model, "position_ids") and hasattr(own, "_prepare_position_ids_for_generation"):
        kwargs["position_ids"] = own._prepare_position_ids_for_generation(ids, kwargs)
    return kwargs


def next_arguments(n_new: int) -> dict[str, Any]:
    """The same of a later pass with `n_new` new tokens, beyond what was updated after the one before."""
    return {"next_sequence_length": n_new} if "next_sequence_length" in _PREPARE else {}


def _generating(model: nn.Module) -> GenerationMixin | None:
    """The model itself, or the one inside its wrappers (PEFT), that can generate."""
    inner: Any = model
    seen: set[int] = set()
    while isinstance(inner, nn.Module) and id(inner) not in seen:
        if isinstance(inner, GenerationMixin):
            return inner
        seen.add(id(inner))
        unwrapped = getattr(inner, "get_base_model", None)  # PEFT's
        inner = unwrapped() if callable(unwrapped) else getattr(inner, "model", None)
    return None


class _OfLength(DynamicCache):  # type: ignore[misc]
    """A cache of which only the length is known."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def __len__(self) -> int:
        return 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length


def feeds_again_at(model: nn.Module, style: CallStyle, n_prompt: int, n_fed: int) -> int | None:
    """The first token, of those generated after `n_prompt` and fed up to `n_fed`, at which the keys of the earlier ones
    are dropped; None if there is none, or if the model's preparation cannot be asked without its cache.
    """
    own: Any = _generating(model)
    if not style.prepared or type(own).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return None
    asked: Any = model
    ids = torch.ones(1, n_fed, dtype=torch.int64, device=own.device)
    for position in range(n_prompt, n_fed):
        text = ids[:, : position + 1]
        try:
            kwargs = first_arguments(model, text, use_cache=True)
            if "cache_position" in kwargs:
                kwargs["cache_position"] = kwargs["cache_position"][-1:]
            cache = _OfLength(position)
            kwargs |= give(model, cache) | next_arguments(1)
            prepared = asked.prepare_inputs_for_generation(text, **kwargs)
        except Exception:  # noqa: BLE001 - any model code may run here; a real pass will tell
            return None
        if not any(value is cache for value in prepared.values()):
            return position
    return None


@contextmanager
def named_trouble(model: nn.Module, n_token: int) -> Iterator[None]:
    """Trouble inside the model becomes one line that names it.

    Raises:
        ModelError: what the model raised; the cause is chained.
    """
    try:
        yield
    except AttnlensError:
        raise
    except Exception as error:  # any model code may run here
        if is_out_of_memory(error):
            raise ModelError(
                f"{type(model).__name__}: out of memory on {n_token} tokens; shorten the text, or try ",
                Setting("quantize"),
                " or a smaller ",
                Setting("dtype"),
            ) from error
        reason = " ".join(str(error).split()).rstrip(".") or "no message"
        raise ModelError(
            f"{type(model).__name__} fails on {n_token} plain token ids: {type(error).__name__}: {reason}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: a GPU's, Python's, or that of torch on a processor, which has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
