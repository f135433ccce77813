"""Attention of a capture, by rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.positions import Positions, check_kept, listed, positions
from attnlens.store.replay import Replay

if TYPE_CHECKING:
    from attnlens.store.named import NamedArray
    from attnlens.store.reader import Capture

Reduction = Literal["max", "mean"]
__all__ = ["Attention", "Positions", "Reduction", "ReplayedAttention", "attention_of"]


class Attention:
    """Where tokens looked, as every weight that was stored.

    Layers, heads and queries are given as numbers, slices, masks, or lists as text (`3,5-7`); negative numbers count
    from the end of the axis, numbers may repeat, and their order is that of the result. What was cropped away, or never
    committed, is an error and never NaN. So is a layer without attention that is named; inside a slice, a mask or all
    layers its rows are NaN.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def rows(
        self, queries: Positions, layers: Positions | None = None, heads: Positions | None = None
    ) -> NDArray[np.float32]:
        """Attention (layer, head, query, key), float32 of the float16 stored, keys 0 … n_token - 1.

        Keys that were cropped away are NaN.

        Args:
            queries: Timeline positions of the tokens that look; one read covers neighbours.
            layers: Layers, all if None.
            heads: Heads, all if None.

        Raises:
            AbsentError: a query was not fed or not committed, a query, layer or head was cropped away, a layer that
                was named has no attention, or the store keeps no attention of every head.
            InputError: a position outside the timeline, the layers or the heads; or none is left.
            StoreError: a chunk is damaged.
        """
        weight = self._capture["attention_weight"]
        return self._weights(weight, *self._chosen(queries, layers, heads))

    def _chosen(
        self, queries: Positions, layers: Positions | None, heads: Positions | None
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Positions of layers, heads and queries, all of which there are."""
        capture, model = self._capture, self._capture.metadata.model
        layer = _some(layers, model.n_layer, "layer")
        head = _some(heads, model.n_head, "head")
        query = _some(queries, capture.n_token, "query")
        for axis, cells in (("layer", layer), ("head", head)):
            check_kept(capture, axis, cells, "attention")
        self._check_attends(layers, layer)
        return layer, head, query

    def _check_attends(self, asked: Positions | None, layers: NDArray[np.intp]) -> None:
        """Refuse layers without attention that were named; a slice or a mask may run over them."""
        if asked is None or isinstance(asked, slice) or np.asarray(asked).dtype.kind == "b":
            return
        without = layers[~self._capture.attention_layers[layers]]
        if len(without):
            there = np.flatnonzero(self._capture.attention_layers)
            raise AbsentError(
                f"capture {self._capture.id}: layer {int(without[0])} has no attention; layers with attention: "
                f"{listed(there)}"
            )

    def rounded(
        self, queries: Positions, layers: Positions | None = None, heads: Positions | None = None
    ) -> NDArray[np.float32]:
        """`rows` as they are drawn: rounded to float16, so that both encodings of a capture give the same pictures."""
        return self.rows(queries, layers, heads)

    def reduced(self, name: Reduction, queries: Positions, layers: Positions | None = None) -> NDArray[np.float32]:
        """Maximum or mean over heads (layer, query, key), float32 of a float16 value.

        Queries from the last prompt token on are read from the reductions that the capture stored, others are made
        from the rows of all heads.

        Raises:
            AbsentError: a query was not fed or not committed; a query or layer was cropped away; a layer that was named
                has no attention.
            InputError: a name or position that does not exist, or none is left.
            StoreError: a chunk is damaged.
        """
        if name not in ("max", "mean"):
            raise InputError(f"attention is reduced by max or mean, not {name!r}")
        capture = self._capture
        stored = capture[f"attention_{name}"]
        origin = capture.n_prompt - 1
        layer = _some(layers, capture.metadata.model.n_layer, "layer")
        query = _some(queries, capture.n_token, "query")
        check_kept(capture, "layer", layer, stored.name)
        self._check_attends(layers, layer)
        if int(query.min()) >= origin:
            parts = [stored[run - origin, layer] for run in _runs(query)]
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0)
            return np.ascontiguousarray(rows.swapaxes(0, 1), np.float32)
        return self._reduce(name, query, layer)

    def _reduce(self, name: Reduction, query: NDArray[np.intp], layer: NDArray[np.intp]) -> NDArray[np.float32]:
        """A reduction of all heads that was not stored."""
        weight = self._capture["attention_weight"]
        head = np.arange(self._capture.metadata.model.n_head)
        check_kept(self._capture, "head", head, "attention")
        return _over_heads(name, self._weights(weight, layer, head, query))

    @staticmethod
    def _weights(
        weight: NamedArray, layer: NDArray[np.intp], head: NDArray[np.intp], query: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Stored weights (layer, head, query, key), by positions that there are."""
        parts = [weight[layer, head, run] for run in _runs(query)]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return rows.astype(np.float32)


class ReplayedAttention(Attention):
    """Where tokens looked, made again from queries and keys: exact to float32, no row is stored."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture)
        self._replay: Replay | None = None

    def rows(
        self, queries: Positions, layers: Positions | None = None, heads: Positions | None = None
    ) -> NDArray[np.float32]:
        """Attention (layer, head, query, key), float32 and not rounded, keys 0 … n_token - 1.

        Keys that were cropped away are NaN.

        Args:
            queries: Timeline positions of the tokens that look.
            layers: Layers, all if None.
            heads: Heads, all if None.

        Raises:
            AbsentError: a query was not fed or not committed; a query, layer or head was cropped away; a layer that was
                named has no attention.
            InputError: a position outside the timeline, the layers or the heads; or none is left.
            StoreError: a chunk is damaged, or its numbers are none that attention can be made of.
        """
        layer, head, query = self._chosen(queries, layers, heads)
        return self._kept_keys(self._replayed.rows(query, layer, head))

    def rounded(
        self, queries: Positions, layers: Positions | None = None, heads: Positions | None = None
    ) -> NDArray[np.float32]:
        """`rows` as they are drawn: rounded to float16, so that both encodings of a capture give the same pictures."""
        return self.rows(queries, layers, heads).astype(np.float16).astype(np.float32)

    def blocks(
        self, queries: NDArray[np.intp], layers: NDArray[np.intp]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]]:
        """Rows of all heads, block by block as memory allows: places of layers, places of queries, weights as `rows`.

        Raises:
            AbsentError, StoreError: as `rows`.
        """
        return self._replayed.blocks(queries, layers)

    def _reduce(self, name: Reduction, query: NDArray[np.intp], layer: NDArray[np.intp]) -> NDArray[np.float32]:
        found = np.empty((len(layer), len(query), self._capture.n_token), np.float32)
        for lanes, places, weights in self._replayed.blocks(query, layer):
            found[np.ix_(lanes, places)] = _over_heads(name, weights.astype(np.float16).astype(np.float32))
        return self._kept_keys(found)

    def _kept_keys(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows whose last axis is the key, NaN at keys that a crop took away, as stored weights have it."""
        kept = self._capture.kept.get("key")
        if kept is not None:
            rows[..., ~kept] = np.nan
        return rows

    @property
    def _replayed(self) -> Replay:
        if self._replay is None:
            self._replay = Replay(self._capture)
        return self._replay


def _over_heads(name: Reduction, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights (layer, head, query, key) → (layer, query, key), rounded as a store keeps it. NaN is no head."""
    if name == "max":
        values = np.fmax.reduce(weights, axis=1)
    else:
        there = ~np.isnan(weights[..., :1]).all(axis=(2, 3), keepdims=True)
        total = np.where(there, weights, np.float32(0)).sum(axis=1, dtype=np.float32)
        count = there.sum(axis=1)
        values = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    rounded: NDArray[np.float32] = values.astype(np.float16).astype(np.float32)
    return rounded


def attention_of(capture: Capture) -> Attention:
    """The attention of `capture`.

    Raises:
        AbsentError: it has none; the reason is named.
    """
    if capture.metadata.attention is None:
        raise AbsentError(f"capture {capture.id} has no attention: {capture.metadata.attention_absent or 'not stored'}")
    return ReplayedAttention(capture) if capture.metadata.attention == "qk" else Attention(capture)


def _some(part: Positions | None, size: int, axis: str) -> NDArray[np.intp]:
    """Positions along an axis, at least one."""
    found = positions(part, size, axis=axis, where="attention rows")
    if not len(found):
        raise InputError(f"attention rows: no {axis} was named")
    return found


def _runs(positions: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Neighbours together."""
    return np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
