"""Takes attention out of a running model without changing what it computes.

The tap calls the model's own eager function on blocks of query rows, so that soft-caps, sinks and masks are what the
model means by them and nothing of size T² exists. In float32 its weights are kept as they are; in a smaller dtype the
block is computed once more in float32 from the model's own query and key, because a softmax rounded to bfloat16 has
three digits. Layers for which the probe has proven that a fused kernel is the same function (`lean`) go that way, and
their weights are the float32 softmax of query and key, of the rows that are wanted.
"""

from __future__ import annotations

import weakref
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
from attnlens.schemas.errors import ModelError, Setting
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
PER_QUERY_TENSORS = frozenset({"position_bias", "sinks"})
"""Tensor arguments (1, head, query, key) or (1, head, query, 1), added to the scores: cut with the rows."""


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
    per_query: tuple[str, ...] = ()
    """Names of tensor arguments that differ from query to query, a position bias for one."""


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
        late_sinks: the model's function applies sinks after the softmax that it reports; hand on what it mixes with.
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
        late_sinks: bool = False,
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
        self._late_sinks = late_sinks
        self._n_key: dict[int, int] = {}
        self._prompt = 0
        self._latest: tuple[int, weakref.ref[Tensor], weakref.ref[Tensor]] | None = None
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
        n_row, n_key, seen = query.shape[2], key.shape[2], self._tracker.seen
        per_query = known_tensors(name, kwargs, n_head=query.shape[1], n_row=n_row, n_key=n_key)
        self._check_axes(name, n_row, n_key, attention_mask)
        again = self._is_again(layer, query, key)
        if not again:
            self._check_growth(name, layer, n_key)
        info = self._sees(layer, attention_mask, n_row, n_key)
        if self._vectors is not None and not again:
            if n_row != self._tracker.n_new:
                raise ModelError(
                    f"{name}: the model feeds the text again at token {seen - 1} and replaces the keys, so queries "
                    "and keys alone would not tell where earlier tokens looked; use ",
                    Setting("attention='dense'", "--attention dense"),
                )
            self._vectors(
                Vectors(layer=layer, first_token=seen - n_row, query=query[0], key=key[0, :, n_key - n_row :])
            )
        if info is not None and layer in self._lean:
            output = fused_output(query, key, value, attention_mask, info, seen)
            if not again:
                self._lean_rows(layer, info, query, key, attention_mask)
        else:
            call = partial(own, module), (query, key, value), attention_mask, args, kwargs
            output = self._own_rows(layer, info is not None, *call, per_query=per_query, taken=not again)
        if self._observe is not None and not again:
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
                        self._in_float, partial(own, module), query, key, value, attention_mask, args, kwargs
                    ),
                    per_query=per_query,
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
        prompt = self._tracker.fresh
        if found is None or (found != info and not prompt):
            raise ModelError(
                f"{self._tracker.name(layer)}: its mask is not that of {info.kind} attention"
                + (f" with a window of {info.window}" if info.window is not None else "")
                + ", so queries and keys alone would not tell where tokens looked; use ",
                Setting("attention='dense'", "--attention dense"),
            )
        self._table[layer] = found
        return found

    def _lean_rows(self, layer: int, info: LayerInfo, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """Hands on the weights of the rows that are wanted, computed from query and key."""
        n_row, n_key, seen = query.shape[2], key.shape[2], self._tracker.seen
        assert info.scaling is not None
        for low, high in self._spans(query, n_key, max(0, self._first_wanted() - (seen - n_row))):
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
        *,
        per_query: Sequence[str],
        taken: bool,
    ) -> Tensor:
        """Runs the model's own function block by block; returns the output (1, query, head, feature).

        `taken`: hand on the weights of the blocks.
        """
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
                partial(Block, layer=layer, first_query=seen - n_row + low, first_key=seen - n_key) if taken else None,
                args,
                {**kwargs, **{word: _cut(kwargs[word], low, high, n_row, columns) for word in per_query}},
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
        cut = n_row - self._tracker.n_new or self._cut_at - (self._tracker.seen - n_row)
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
        block: Callable[..., Block] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Runs some rows, hands on the `block` of their weights if it is wanted, returns their output."""
        query, key, value = qkv
        output, weights = own(query, key, value, mask, *args, **kwargs)
        if block is None:
            return output
        if weights is None or weights.shape != (1, query.shape[1], query.shape[2], key.shape[2]):
            found = "nothing" if weights is None else f"shape {tuple(weights.shape)}"
            raise ModelError(
                f"{name}: its eager attention returns {found} for the weights, expected "
                f"(1, head {query.shape[1]}, query {query.shape[2]}, key {key.shape[2]}); this model cannot be captured"
            )
        taken = block(weights=weights[0])
        if taken.first_query >= self._first_wanted():
            if weights.dtype != torch.float32 and not self._native:
                taken = block(weights=self._in_float(own, query, key, value, mask, args, kwargs))
            elif self._has_late_sinks(kwargs):
                taken = block(weights=weights[0] * _kept_by_sinks(own, query, key, value, mask, weights, args, kwargs))
            self._receive(taken)
        return output

    def _has_late_sinks(self, kwargs: Mapping[str, Any]) -> bool:
        return self._late_sinks and any(kwargs.get(word) is not None for word in PER_HEAD_TENSORS)

    def _in_float(
        self,
        own: Callable[..., tuple[Tensor, Tensor | None]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """The weights (head, query, key) that the model's function gives in float32, its sinks included."""
        weights = _in_float(own, query, key, value, mask, args, kwargs)
        if self._has_late_sinks(kwargs):
            weights = weights * _kept_by_sinks(own, query, key, value, mask, weights[None], args, kwargs)
        return weights

    def _first_wanted(self) -> int:
        """Position of the first query of this pass whose weights are handed on; tokens fed again have theirs."""
        return max(self._wanted_from, self._tracker.seen - self._tracker.n_new)

    def _is_again(self, layer: int, query: Tensor, key: Tensor) -> bool:
        """Whether the layer's last call had the very same queries and keys, and so the same weights.

        A model that has values of twice the width may mix them in two calls.
        """
        latest = self._latest
        self._latest = (layer, weakref.ref(query), weakref.ref(key))
        return latest is not None and latest[0] == layer and latest[1]() is query and latest[2]() is key

    def _check_growth(self, name: str, layer: int, n_key: int) -> None:
        """With a cache, keys are all tokens so far, or a window of a constant number of the last ones."""
        seen = self._tracker.seen - self._tracker.origin
        before = seen - self._tracker.n_row
        last, self._n_key[layer] = self._n_key.get(layer), n_key
        if last is None or before == 0 or (n_key == seen and last == before):
            return
        from_prompt = last == before and self._prompt == before
        if n_key > seen or (n_key != last and not from_prompt):
            raise ModelError(
                f"{name}: {n_key} keys for {seen} tokens, and {last} keys for {before} tokens before; its keys are "
                "not the last tokens of the text, so its rows cannot be stored"
            )

    def _check_axes(self, name: str, n_row: int, n_key: int, mask: Tensor | None) -> None:
        fed, seen = self._tracker.n_row, self._tracker.seen - self._tracker.origin
        if fed == seen:
            self._prompt = seen
        if n_row != fed or n_key > seen or (fed == seen and n_key != seen):
            raise ModelError(
                f"{name}: attention with {n_row} queries and {n_key} keys for {fed} new tokens of {seen}; its axes "
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
    values = _enough(value, args, kwargs).float()
    _, weights = own(query.float(), key.float(), values, floating, *args, **kwargs)
    assert weights is not None
    return weights[0]


def _enough(value: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """One column of values where only weights are wanted; all of them for a function that is not told how to scale.

    Such a function may take the scale from their width, as that of GPT-2 does in transformers 5.1.
    """
    told = _number(kwargs.get("scaling", args[0] if args else None)) is not None
    return value[..., :1] if told else value


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


def _kept_by_sinks(
    own: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    weights: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """What a function that scales its output by sinks leaves of each row (head, query, 1) of `weights`.

    Values of 1 make the output the sum of the weights that were really used.
    """
    query, key = query.to(weights.dtype), key.to(weights.dtype)
    ones = torch.ones_like(_enough(value, args, kwargs), dtype=weights.dtype)
    floating = mask.to(weights.dtype) if mask is not None and mask.is_floating_point() else mask
    total, _ = own(query, key, ones, floating, *args, **kwargs)
    return (total[..., :1].transpose(1, 2) / weights.sum(dim=-1, keepdim=True))[0]


def known_tensors(name: str, kwargs: Mapping[str, Any], *, n_head: int, n_row: int, n_key: int) -> tuple[str, ...]:
    """Names of the arguments that have to be cut with the rows; refuses, by name, any with tensors whose effect on
    single rows is not known.

    Raises:
        ModelError: as said.
    """
    per_query = []
    for word, value in kwargs.items():
        if word in HARMLESS_TENSORS or not _has_tensor(value):
            continue
        if word in PER_HEAD_TENSORS and isinstance(value, Tensor) and value.numel() == n_head:
            continue
        if (
            word in PER_QUERY_TENSORS
            and isinstance(value, Tensor)
            and value.shape in {(1, n_head, n_row, n_key), (1, n_head, n_row, 1)}
        ):
            per_query.append(word)
            continue
        raise ModelError(
            f"{name}: its attention takes the tensor argument {word!r}, which attnlens does not know how to store; "
            "this model cannot be captured"
        )
    return tuple(per_query)


def _has_tensor(value: object) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(_has_tensor(item) for item in value.values())
    return isinstance(value, tuple | list) and any(_has_tensor(item) for item in value)
