"""Attention of one capture, read from the store: once a query for all its heads and windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlens.render.attention.heads import Heads
from attnlens.render.attention.reduce import Floats, mean
from attnlens.render.attention.rollout import Rollout
from attnlens.render.attention.row import Row
from attnlens.render.attention.scales import Scale
from attnlens.render.choice.queries import Timeline
from attnlens.schemas.errors import AbsentError, InputError

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


def timeline(capture: Capture) -> Timeline:
    """How far the capture goes."""
    return Timeline(
        capture=capture.id,
        n_prompt=capture.n_prompt,
        n_token=capture.n_token,
        n_row=min(capture.committed, capture.n_fed),
        kept=None if (kept := capture.kept.get("token")) is None else tuple(kept.tolist()),
    )


def layers_kept(capture: Capture) -> list[bool] | None:
    """Which layers a cropped store has, None if all."""
    kept = capture.kept.get("layer")
    return None if kept is None else kept.tolist()


def check_source(capture: Capture, heads: Sequence[Heads], scale: Scale) -> None:
    """See that a scale can be had for these reductions, without reading anything.

    Raises:
        AbsentError: the scale needs an array that the store does not have.
        InputError: scale and reduction do not go together.
    """
    if not scale.norms:
        return
    if any(head.rollout for head in heads):
        raise InputError("--heads rollout has no value vectors of its own: choose another --scale than value-norm")
    if "value_norm" not in capture:
        raise AbsentError(
            f"--scale value-norm: capture {capture.id} holds no lengths of value vectors (value_norm): "
            f"{capture.why_absent('value_norm')}"
        )


Merge = Callable[[Floats, int], Floats]

BUDGET = 4 * 2**20
"""Bytes of attention weights that are read at a time; a scale may hold them three times over."""


class Source:
    """Attention on the drawn scale, for each of some reductions of the head axis.

    Args:
        capture: where from.
        layers: the layers that are drawn.
        heads: one or several reductions; what they need is read together.
        scale: what is made of the weights.
        merge: what puts keys together to columns, (layer, head, key) of one query → (layer, head, column).

    Raises:
        InputError: rollout needs too much.
    """

    def __init__(
        self,
        capture: Capture,
        *,
        layers: tuple[int, ...],
        heads: Sequence[Heads],
        scale: Scale,
        merge: Merge | None = None,
    ) -> None:
        self._merge = merge
        self._capture, self._layers, self._heads, self._scale = capture, layers, tuple(heads), scale
        self._ids = np.asarray(capture.token_id)
        sinks = np.array(capture.token_special, np.bool_)
        sinks[0] = True
        self._sinks = sinks
        listed = [head.heads for head in self._heads]
        every = any(names is None for names in listed)
        self._read = None if every else tuple(sorted({head for names in listed if names is not None for head in names}))
        self._stored = (
            self._heads[0].stored if len(self._heads) == 1 and scale.before is None and merge is None else None
        )
        self._n_read = len(self._read) if self._read is not None else capture.metadata.model.n_head
        self._norms: tuple[tuple[int, ...], Floats] | None = None
        self._rollout = self._new_rollout() if any(head.rollout for head in self._heads) else None

    def rows(self, queries: Sequence[int]) -> list[list[tuple[Floats, Floats | None]]]:
        """For each query and each reduction: values (layer, key), keys 0 … query, and the strip's (layer) or None.

        Raises:
            AbsentError: the store has no attention for a query.
            StoreError: it is damaged.
        """
        if self._rollout is not None:
            return [[self._finish(self._rolled(query), query, self._heads[0], self._layers, None)] for query in queries]
        attention = self._capture.attention
        if self._stored is not None:
            mask, order = self._lanes(self._layers)
            reduced = attention.reduced(self._stored, queries, layers=mask)[order]
            return [[(self._after(reduced[:, place, : query + 1]), None)] for place, query in enumerate(queries)]
        return [self._reduced(query) for query in queries]

    def _reduced(self, query: int) -> list[tuple[Floats, Floats | None]]:
        """Every reduction of one query, layer by layer where the row of all layers is large."""
        found = []
        for layers in self._parts(self._layers, self._n_read):
            mask, order = self._lanes(layers)
            rows = self._capture.attention.rounded([query], layers=mask, heads=self._read)
            weights = rows[order, :, 0, : query + 1]
            found.append([self._finish(weights, query, heads, layers, self._read) for heads in self._heads])
        return [
            (
                np.concatenate([values for values, _ in parts]),
                None if parts[0][1] is None else np.concatenate([mass for _, mass in parts if mass is not None]),
            )
            for parts in zip(*found, strict=True)
        ]

    def _lanes(self, layers: tuple[int, ...]) -> tuple[npt.NDArray[np.bool_], slice | npt.NDArray[np.intp]]:
        """`layers` as a mask, and where each of them is in what is read by it.

        A layer without attention is drawn as absent, and would be refused if it were asked for by its number.
        """
        mask = np.zeros(self._capture.metadata.model.n_layer, np.bool_)
        mask[list(layers)] = True
        upwards = np.flatnonzero(mask)
        return mask, slice(None) if upwards.tolist() == list(layers) else np.searchsorted(upwards, layers)

    def _parts(self, layers: tuple[int, ...], n_head: int, n_query: int = 1) -> list[tuple[int, ...]]:
        """`layers` in groups whose rows fit the budget together."""
        size = max(1, BUDGET // max(1, 4 * n_head * n_query * self._capture.n_token))
        return [layers[start : start + size] for start in range(0, len(layers), size)]

    def _finish(
        self, weights: Floats, query: int, heads: Heads, layers: tuple[int, ...], read: tuple[int, ...] | None
    ) -> tuple[Floats, Floats | None]:
        """One reduction of one query's weights (layer, head, key)."""
        if read is not None and heads.heads is not None and heads.heads != read:
            weights = weights[:, [read.index(head) for head in heads.heads]]
        row = self._row(query, heads, layers)
        scaled = weights if self._scale.before is None else self._scale.before(weights, row)
        merged = scaled if self._merge is None else self._merge(scaled, query)
        values = self._after(heads.apply(weights, merged, row))
        if self._scale.strip is None:
            return values, None
        mass = self._scale.strip(weights, row)[:, :, None]
        return values, heads.apply(weights, mass, row)[:, 0]

    def _after(self, values: Floats) -> Floats:
        return values if self._scale.after is None else self._scale.after(values)

    def _row(self, query: int, heads: Heads, layers: tuple[int, ...]) -> Row:
        keys = slice(0, query + 1)
        norms: npt.NDArray[np.float32] | float = math.nan
        if self._scale.norms:
            norms = self._value_norms(layers)[:, slice(None) if heads.heads is None else list(heads.heads), keys]
        return Row(query=query, layers=layers, ids=self._ids[keys], sinks=self._sinks[keys], norms=norms)

    def _rolled(self, query: int) -> Floats:
        """Rollout as if it were one head: (layer, 1, key)."""
        assert self._rollout is not None
        return self._rollout.row(query)[list(self._layers)][:, None]

    def _value_norms(self, layers: tuple[int, ...]) -> Floats:
        """Lengths of value vectors (layer, head, key); those that were read last are kept."""
        if self._norms is None or self._norms[0] != layers:
            self._norms = layers, np.asarray(self._capture["value_norm"][list(layers)], np.float32)
        return self._norms[1]

    def _new_rollout(self) -> Rollout:
        model = self._capture.metadata.model
        return Rollout(self._average, model.n_layer, timeline(self._capture).n_row)

    def _average(self, start: int, stop: int) -> Floats:
        """Mean over heads of queries start … stop-1, all layers: (layer, query, key)."""
        model, n_token = self._capture.metadata.model, self._capture.n_token
        average: Floats = np.empty((model.n_layer, stop - start, n_token), np.float32)
        step = max(1, BUDGET // max(1, 4 * model.n_layer * model.n_head * n_token))
        for first in range(start, stop, step):
            queries = range(first, min(first + step, stop))
            for layers in self._parts(tuple(range(model.n_layer)), model.n_head, len(queries)):
                mask, _ = self._lanes(layers)  # upwards already
                weights = self._capture.attention.rounded(queries, layers=mask)
                for layer, heads in zip(layers, weights, strict=True):
                    average[layer, first - start : queries.stop - start] = mean(heads.swapaxes(0, 1))
        return average
