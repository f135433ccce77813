"""A model without weights, run for its shapes: torch's device "meta" computes sizes and no numbers.

What is seen is what a real pass would show: which layers call attention and with what, what the cache keeps, how wide
the residual stream is, and how many bytes of activations live at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.configuration import refuse_configuration, text_config
from attnlens.capture.context import flatten
from attnlens.capture.feeding import style_of
from attnlens.capture.forecast.live import LiveBytes
from attnlens.capture.forward import attempt, logits_of
from attnlens.capture.kv_cache import taken
from attnlens.capture.layer_table import layer_table
from attnlens.capture.override import eager_configuration, hooks_kept, tapped
from attnlens.capture.reported import find_places, reported_table
from attnlens.capture.residual import LayerTracker, find_layers
from attnlens.capture.tap import AttentionTap, Call
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import LayerInfo


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What a pass over `n_token` tokens showed, in bytes.

    cache_bytes: what the cache keeps after it; live_bytes: the most that activations, logits and cache took at a time,
    attention's own blocks excepted; stream_width: features of the residual stream, None for several streams.
    """

    model: nn.Module
    table: tuple[LayerInfo, ...]
    vocabulary_size: int
    stream_width: int | None
    cache_bytes: int
    live_bytes: int
    only_dense: str | None
    device: str


def sketch(config: Any, dtype: torch.dtype, n_token: int, *, trust_remote_code: bool = False) -> Sketch:
    """Builds the class of `config` without weights and runs it over `n_token` tokens.

    Raises:
        ModelError: a capture would be refused for what is seen here; the message is a capture's.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=trust_remote_code
        ).eval()
    name = type(model).__name__
    try:
        refuse_configuration(model.config, name)
        return _run(model, n_token)
    except ModelError as refusal:
        raise refusal if name in str(refusal) else ModelError(f"{name}: {refusal}") from refusal


def _run(model: Any, n_token: int) -> Sketch:
    """On "meta"; where the model looks at numbers on its way, on the CPU with one number for each weight."""
    with torch.no_grad(), _unpadded(model):
        for experts in (None, "batched_mm"):
            try:
                if experts is not None and hasattr(model, "set_experts_implementation"):
                    model.set_experts_implementation(experts)
                return _pass(model, n_token, "meta")
            except ModelError as error:
                if not isinstance(error.__cause__, NotImplementedError | RuntimeError | TypeError):
                    raise
        flatten(model)
        return _pass(model, n_token, "cpu")


def _pass(model: Any, n_token: int, device: str) -> Sketch:
    ids, style = torch.ones(1, n_token, dtype=torch.int64, device=device), style_of(model)
    calling: list[nn.Module] = []
    short = ids[:, : min(n_token, 8)]
    with tapped(model, partial(_note, calling)):
        attempt(model, short, style, use_cache=True)
    if calling:
        path, layers = find_layers(model, calling)
    else:
        path, layers, _, style = find_places(model, short, style)
    widths: list[int] = []
    calls: list[Call] = []
    tracker = LayerTracker(path, layers)
    # A capture keeps no call's tensors, and they are not to be counted as alive.
    tap = AttentionTap(
        tracker, lambda block: None, max_rows=n_token, observe=lambda call: calls.append(_shapes(call)), native=True
    )
    with (
        LiveBytes() as live,
        tracker,
        eager_configuration(model),
        hooks_kept(model),
        tapped(model, partial(_sized, tap)),
    ):
        tracker.begin(n_token)
        output = attempt(model, ids, style, use_cache=True, last=1)
        tracker.end()
    logits = logits_of(model, output)
    cache_bytes = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(taken(output)))
    try:
        streams = LayerTracker(path, layers, lambda depth, stream: widths.append(stream.shape[-1]))
        with streams, eager_configuration(model):
            streams.begin(short.shape[1])
            attempt(model, short, style, use_cache=True)
            streams.end()
    except ModelError:
        widths.clear()
    seen = [call.layer for call in calls]
    if len(set(seen)) < len(seen):
        twice = next(layer for layer in seen if seen.count(layer) > 1)
        raise ModelError(
            f"{path}.{twice} computes attention more than once a pass; which one a picture should show is not defined, "
            "so it is refused"
        )
    if calling:
        table = layer_table(model, path, layers, calls)
    else:
        heads = int(getattr(text_config(model), "num_attention_heads", 0))
        table = tuple(reported_table(model, path, layers, dict.fromkeys(range(len(layers)), heads)))
    biased = sorted({word for call in calls for word in call.per_query})
    only_dense = f"its attention takes {biased[0]}, which differs from query to query" if biased else None
    if not calling:
        only_dense = "its attention is had only as the model reports it"
    return Sketch(
        model=model,
        table=table,
        vocabulary_size=logits.shape[-1],
        stream_width=widths[0] if widths and len(set(widths)) == 1 else None,
        cache_bytes=cache_bytes,
        live_bytes=live.most,
        only_dense=only_dense,
        device=device,
    )


def _note(calling: list[nn.Module], own: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    calling.append(module)
    return _sizes(module, *args, **kwargs)


def _sized(tap: AttentionTap, own: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return tap(_sizes, module, *args, **kwargs)


def _sizes(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What attention returns, without scores: output (1, query, head, feature), weights (1, head, query, key)."""
    _, heads, rows, _ = query.shape
    return (
        query.new_zeros((1, rows, heads, value.shape[3])),
        query.new_zeros(1).expand(1, heads, rows, key.shape[2]),
    )


def _shapes(call: Call) -> Call:
    """The call, its tensors replaced by some of the same shapes that take no memory."""

    def shape(given: Tensor) -> Tensor:
        return torch.empty((), device=given.device).expand(given.shape)

    return replace(
        call,
        query=shape(call.query),
        key=shape(call.key),
        value=shape(call.value),
        output=shape(call.output),
        mask=None,
        sink_values=None,
        float_weights=None,
    )


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor that a cache holds."""
    if isinstance(value, Tensor):
        yield value
    elif depth < 5 and isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, depth + 1)
    elif depth < 5 and isinstance(value, dict):
        yield from _tensors(list(value.values()), depth + 1)
    elif depth < 5 and hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        yield from _tensors(list(vars(value).values()), depth + 1)


@contextmanager
def _unpadded(model: Any) -> Iterator[None]:
    """Without a padding token, for which some models search the ids to warn."""
    config = model.config
    before = getattr(config, "pad_token_id", None)
    config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = before
