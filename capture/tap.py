"""Takes attention out of a running model without changing what it computes.

The tap calls the model's own eager function on blocks of query rows, so that soft-caps, sinks and masks are what the
model means by them and nothing of size T² exists. In float32 its weights are kept as they are; in a smaller dtype the
block is computed once more in float32 from the model's own query and key, because a softmax rounded to bfloat16 has
three digits. Layers for which the probe has proven that a fused kernel is the same function (`lean`) go that way, and
their weights are the float32 softmax of query and key, of the rows that are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.fused import fused_output, plain_weights
from attnlens.capture.override import Attention
from attnlens.capture.residual import LayerTracker
from attnlens.capture.sight import Sight, first_seen
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import LayerInfo

BLOCK_BYTES = {"cpu": 1 << 20}
OTHER_BLOCK_BYTES = 64 << 20
"""Scores (head, query, key) in float32 that one block may have; eager holds about four copies of it. On a processor
blocks that fit its cache are fastest, on a GPU few large ones."""

HARMLESS_TENSORS = frozenset(
    {"position_ids", "cache_position", "position_embeddings", "cu_seq_lens_q", "cu_seq_lens_k"}
)
"""Tensor arguments that eager functions take and ignore."""
PER_HEAD_TENSORS = frozenset({"s_aux", "sinks"})
"""Tensor arguments with one number a head, the same for every query: safe to pass on with a block of rows."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Attention of some query rows of one layer.

    weights: float32 (head, query, key); row 0 is timeline position `first_query`, column 0 is `first_key`. Every
    column that is not here is masked: attention 0.
    """

    layer: int
    first_query: int
    first_key: int
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Queries and keys of the new tokens of one layer, as the kernel gets them, not copied.

    query: (head, token, feature); key: (kv_head, token, feature); token 0 is timeline position `first_token`.
    """

    layer: int
    first_token: int
    query: Tensor
    key: Tensor


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one attention call was given, for the per-layer table and the probe.

    `float_weights` computes what the model's own function gives in float32, (head, query, key).
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float | None
    softcap: float | None
    window: int | None
    sinks: bool
    output: Tensor
    sink_values: Tensor | None = None
    float_weights: Callable[[], Tensor] | None = None


class AttentionTap:
    """The function that stands in for `eager` while a capture runs; hands every block of rows to `receive`.

    Args:
        tracker: says which layer runs.
        receive: takes blocks of weights.
        max_rows: rows of a block; by default as many as fit.
        observe: is told of every call.
        native: hand on the weights that the model itself used, rounded to its dtype, instead of float32 ones.
        table: what is known of each layer; kinds and windows are corrected here by the masks of a prompt.
        lean: layers whose output may come from a fused kernel.
        wanted_from: position of the first query whose weights are handed on.
        cut_at: position of a query before which a block ends, so that it is computed alike whatever comes before.
        vectors: takes queries and keys. Then every mask must be one that the table can tell.
    """

    def __init__(
        self,
        tracker: LayerTracker,
        receive: Callable[[Block], None],
        *,
        max_rows: int | None = None,
        observe: Callable[[Call], None] | None = None,
        native: bool = False,
        table: dict[int, LayerInfo] | None = None,
        lean: frozenset[int] = frozenset(),
        wanted_from: int = 0,
        cut_at: int = 0,
        vectors: Callable[[Vectors], None] | None = None,
    ) -> None:
        self._tracker = tracker
        self._receive = receive
        self._max_rows = max_rows
        self._observe = observe
        self._native = native
        self._table = table or {}
        self._lean = lean
        self._wanted_from = wanted_from
        self._cut_at = cut_at
        self._vectors = vectors
        self._sight = Sight()
        self._causal: tuple[Tensor, bool] | None = None

    def __call__(
        self,
        own: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Shapes as transformers': query (1, head, query, feature), key and value (1, kv_head, key, feature).

        Raises:
            ModelError: an argument could change the result in a way that blocks of rows would miss.
        """
        layer = self._tracker.running
        if layer is None:
            return own(module, query, key, value, attention_mask, *args, **kwargs)
        name = self._tracker.name(layer)
        refuse_unknown(name, kwargs, n_head=query.shape[1])
        n_row, n_key, seen = query.shape[2], key.shape[2], self._tracker.seen
        self._check_axes(name, n_row, n_key, attention_mask)
        info = self._sees(layer, attention_mask, n_row, n_key)
        if self._vectors is not None:
            self._vectors(
                Vectors(layer=layer, first_token=seen - n_row, query=query[0], key=key[0, :, n_key - n_row :])
            )
        if info is not None and layer in self._lean:
            output = fused_output(query, key, value, attention_mask, info, seen)
            self._lean_rows(layer, info, query, key, attention_mask)
        else:
            call = partial(own, module), (query, key, value), attention_mask, args, kwargs
            output = self._own_rows(layer, info is not None, *call)
        if self._observe is not None:
            window = kwargs.get("sliding_window")
            sinks = next((kwargs[word] for word in sorted(PER_HEAD_TENSORS) if kwargs.get(word) is not None), None)
            self._observe(
                Call(
                    layer=layer,
                    module=module,
                    query=query,
                    key=key,
                    value=value,
                    mask=attention_mask,
                    scaling=_number(kwargs.get("scaling", args[0] if args else None)),
                    softcap=_number(kwargs.get("softcap")),
                    window=window if isinstance(window, int) else None,
                    sinks=sinks is not None,
                    sink_values=sinks,
                    output=output,
                    float_weights=partial(
                        _in_float, partial(own, module), query, key, value, attention_mask, args, kwargs
                    ),
                )
            )
        return output, None

    def _sees(self, layer: int, mask: Tensor | None, n_row: int, n_key: int) -> LayerInfo | None:
        """The layer with the kind and window that the mask has; None if the table cannot tell what it has.

        Raises:
            ModelError: queries and keys are taken, and would not suffice.
        """
        info = self._table.get(layer)
        if info is None:
            return None
        found = self._sight.of(mask, info, self._tracker.seen, n_row, n_key)
        if self._vectors is None:
            return found
        prompt = n_row == self._tracker.seen
        if found is None or (found != info and not prompt):
            raise ModelError(
                f"{self._tracker.name(layer)}: its mask is not that of {info.kind} attention"
                + (f" with a window of {info.window}" if info.window is not None else "")
                + ", so queries and keys alone would not tell where tokens looked; use --attention dense"
            )
        self._table[layer] = found
        return found

    def _lean_rows(self, layer: int, info: LayerInfo, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """Hands on the weights of the rows that are wanted, computed from query and key."""
        n_row, n_key, seen = query.shape[2], key.shape[2], self._tracker.seen
        assert info.scaling is not None
        for low, high in self._spans(query, n_key, max(0, self._wanted_from - (seen - n_row))):
            start, stop = first_seen(info, seen - n_row + low) - (seen - n_key), n_key - n_row + high
            part = mask[0, :, low:high, start:stop] if mask is not None and high - low > 1 else None
            weights = plain_weights(query[0, :, low:high], key[0, :, start:stop], part, info.scaling)
            self._receive(
                Block(layer=layer, first_query=seen - n_row + low, first_key=seen - n_key + start, weights=weights)
            )

    def _own_rows(
        self,
        layer: int,
        causal: bool,
        own: Attention,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Runs the model's own function block by block; returns the output (1, query, head, feature)."""
        query, key, value = qkv
        n_row, n_key, seen = query.shape[2], key.shape[2], self._tracker.seen
        spans = list(self._spans(query, n_key, 0))
        causal = causal or (len(spans) > 1 and self._is_causal(mask, n_row, n_key, spans))
        output = torch.empty(0)
        for low, high in spans:
            columns = n_key - n_row + high if causal else n_key
            part = self._rows(
                own,
                (query[:, :, low:high], key[:, :, :columns], value[:, :, :columns]),
                _cut(mask, low, high, n_row, columns),
                self._tracker.name(layer),
                partial(Block, layer=layer, first_query=seen - n_row + low, first_key=seen - n_key),
                args,
                kwargs,
            )
            if len(spans) == 1:
                return part
            if low == 0:
                output = part.new_empty((part.shape[0], n_row, *part.shape[2:]))
            output[:, low:high] = part
        return output

    def _spans(self, query: Tensor, n_key: int, first: int) -> Iterator[tuple[int, int]]:
        """Blocks of the rows from `first` on, none of which goes across `cut_at`."""
        n_head, n_row = query.shape[1], query.shape[2]
        room = BLOCK_BYTES.get(query.device.type, OTHER_BLOCK_BYTES)
        height = self._max_rows or max(1, room // (4 * n_head * n_key))
        cut = self._cut_at - (self._tracker.seen - n_row)
        while first < n_row:
            last = min(first + height, n_row)
            last = cut if first < cut < last else last
            yield first, last
            first = last

    def _rows(
        self,
        own: Attention,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        name: str,
        block: Callable[..., Block],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Runs some rows, hands on the `block` of their weights if it is wanted, returns their output."""
        query, key, value = qkv
        output, weights = own(query, key, value, mask, *args, **kwargs)
        if weights is None or weights.shape != (1, query.shape[1], query.shape[2], key.shape[2]):
            found = "nothing" if weights is None else f"shape {tuple(weights.shape)}"
            raise ModelError(
                f"{name}: its eager attention returns {found} for the weights, expected "
                f"(1, head {query.shape[1]}, query {query.shape[2]}, key {key.shape[2]}); this model cannot be captured"
            )
        taken = block(weights=weights[0])
        if taken.first_query >= self._wanted_from:
            if weights.dtype != torch.float32 and not self._native:
                taken = block(weights=_in_float(own, query, key, value, mask, args, kwargs))
            self._receive(taken)
        return output

    def _check_axes(self, name: str, n_row: int, n_key: int, mask: Tensor | None) -> None:
        seen, n_new = self._tracker.seen, self._tracker.n_new
        if n_row != n_new or n_key > seen or (n_new == seen and n_key != seen):
            raise ModelError(
                f"{name}: attention with {n_row} queries and {n_key} keys for {n_new} new tokens of {seen}; its axes "
                "are not the tokens of the text, so its rows cannot be stored"
            )
        if mask is None and n_row > 1:
            raise ModelError(f"{name}: attention over {n_row} queries came without a mask; cannot tell it is causal")
        if mask is not None and mask.dim() != 4:
            raise ModelError(f"{name}: attention mask with {mask.dim()} axes, expected 4 (batch, head, query, key)")

    def _is_causal(self, mask: Tensor | None, n_row: int, n_key: int, spans: Sequence[tuple[int, int]]) -> bool:
        """Whether keys after a block's last query are masked for the whole block; asked once per mask and pass."""
        if mask is None or mask.shape[-2] != n_row:
            return False
        if self._causal is None or self._causal[0] is not mask:
            hidden = (_hidden(mask[..., low:high, n_key - n_row + high : n_key]) for low, high in spans)
            self._causal = (mask, all(hidden))
        return self._causal[1]

    def forget_mask(self) -> None:
        """Drops the masks of the pass that ended, which may be large."""
        self._causal = None
        self._sight.forget()


def _in_float(
    own: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """Weights (head, query, key) of the model's own function in float32, from the same query and key."""
    floating = mask.float() if mask is not None and mask.is_floating_point() else mask
    # One column of values is enough: only the weights are wanted.
    _, weights = own(query.float(), key.float(), value[..., :1].float(), floating, *args, **kwargs)
    assert weights is not None
    return weights[0]


def _hidden(mask: Tensor) -> bool:
    """Whether every entry of a mask forbids its key, so far down that its softmax is exactly 0."""
    if mask.dtype == torch.bool:
        return not bool(mask.any())
    return bool((mask <= torch.finfo(mask.dtype).min / 2).all())


def _cut(mask: Tensor | None, first: int, last: int, n_row: int, n_column: int) -> Tensor | None:
    if mask is None:
        return None
    rows = mask[..., first:last, :] if mask.shape[-2] == n_row else mask
    return rows[..., :n_column]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def refuse_unknown(name: str, kwargs: Mapping[str, Any], n_head: int) -> None:
    """Refuses, by name, any argument with tensors in it whose effect on single rows is not known.

    Raises:
        ModelError: as said.
    """
    for word, value in kwargs.items():
        if word in HARMLESS_TENSORS or not _has_tensor(value):
            continue
        if word in PER_HEAD_TENSORS and isinstance(value, Tensor) and value.numel() == n_head:
            continue
        raise ModelError(
            f"{name}: its attention takes the tensor argument {word!r}, which attnlens does not know how to store; "
            "this model cannot be captured"
        )


def _has_tensor(value: object) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(_has_tensor(item) for item in value.values())
    return isinstance(value, tuple | list) and any(_has_tensor(item) for item in value)
