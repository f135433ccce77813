"""Attention of a capture, by rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.replay import Replay

if TYPE_CHECKING:
    from attnlens.store.reader import Capture

Reduction = Literal["max", "mean"]
Positions = int | slice | Sequence[int] | NDArray[np.integer[Any]]


class Attention:
    """Where tokens looked, as every weight that was stored. Rows of layers without attention are NaN."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def rows(
        self, queries: Positions, layers: Positions | None = None, heads: Positions | None = None
    ) -> NDArray[np.float32]:
        """Attention (layer, head, query, key), float32 of the float16 stored, keys 0 … n_token - 1.

        Args:
            queries: Timeline positions of the tokens that look; one read covers neighbours.
            layers: Layers, all if None.
            heads: Heads, all if None.

        Raises:
            AbsentError: a query was not fed or not committed, or the store keeps no attention of every head.
            InputError: a position outside the timeline, the layers or the heads.
            StoreError: a chunk is damaged.
        """
        weight = self._capture["attention_weight"]
        layer, head, query, _ = (_listed(part, size) for part, size in
                                 zip((layers, heads, queries, None), weight.shape, strict=True))  # fmt: skip
        if len(query) == 0:
            raise InputError("attention rows: no query was named")
        _check_kept(self._capture, layer=layer, head=head)
        parts = [weight[layer, head, run] for run in _runs(query)]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return rows.astype(np.float32)

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
            AbsentError: a query was not fed or not committed.
            InputError: a name or position that does not exist.
            StoreError: a chunk is damaged.
        """
        if name not in ("max", "mean"):
            raise InputError(f"attention is reduced by max or mean, not {name!r}")
        capture = self._capture
        stored = capture[f"attention_{name}"]
        origin = capture.n_prompt - 1
        query, layer = _listed(queries, capture.n_token), _listed(layers, capture.metadata.model.n_layer)
        if len(query) == 0:
            raise InputError("attention rows: no query was named")
        if int(query.min()) >= origin:
            parts = [stored[run - origin, layer] for run in _runs(query)]
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0)
            return np.ascontiguousarray(rows.swapaxes(0, 1), np.float32)
        return self._reduce(name, query, layer)

    def _reduce(self, name: Reduction, query: NDArray[np.intp], layer: NDArray[np.intp]) -> NDArray[np.float32]:
        """A reduction of all heads that was not stored."""
        return _over_heads(name, self.rows(query, layer))


class ReplayedAttention(Attention):
    """Where tokens looked, made again from queries and keys: exact to float32, no row is stored."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture)
        self._replay: Replay | None = None

    def rows(
        self, queries: Positions, layers: Positions | None = None, heads: Positions | None = None
    ) -> NDArray[np.float32]:
        """Attention (layer, head, query, key), float32 and not rounded, keys 0 … n_token - 1.

        Args:
            queries: Timeline positions of the tokens that look.
            layers: Layers, all if None.
            heads: Heads, all if None.

        Raises:
            AbsentError: a query was not fed or not committed.
            InputError: a position outside the timeline, the layers or the heads.
            StoreError: a chunk is damaged, or its numbers are none that attention can be made of.
        """
        model = self._capture.metadata.model
        query = _within(_listed(queries, self._capture.n_token), self._capture.n_token, "query")
        layer = _within(_listed(layers, model.n_layer), model.n_layer, "layer")
        head = _within(_listed(heads, model.n_head), model.n_head, "head")
        if len(query) == 0:
            raise InputError("attention rows: no query was named")
        _check_kept(self._capture, layer=layer, head=head)
        return self._replayed.rows(query, layer, head)

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
        n_token, model = self._capture.n_token, self._capture.metadata.model
        query, layer = _within(query, n_token, "query"), _within(layer, model.n_layer, "layer")
        found = np.empty((len(layer), len(query), n_token), np.float32)
        for lanes, places, weights in self._replayed.blocks(query, layer):
            found[np.ix_(lanes, places)] = _over_heads(name, weights.astype(np.float16).astype(np.float32))
        return found

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


def _check_kept(capture: Capture, **asked: NDArray[np.intp]) -> None:
    """Refuse layers and heads that a crop took away."""
    for axis, positions in asked.items():
        kept = capture.kept.get(axis)
        inside = positions[(positions >= 0) & (positions < len(kept))] if kept is not None else positions[:0]
        if kept is not None and not kept[inside].all():
            there = ", ".join(map(str, np.flatnonzero(kept)[:20].tolist()))
            raise AbsentError(
                f"capture {capture.id}: {axis} {int(inside[~kept[inside]][0])} was cropped away; there are {there}"
            )


def attention_of(capture: Capture) -> Attention:
    """The attention of `capture`.

    Raises:
        AbsentError: it has none; the reason is named.
    """
    if capture.metadata.attention is None:
        raise AbsentError(f"capture {capture.id} has no attention: {capture.metadata.attention_absent or 'not stored'}")
    return ReplayedAttention(capture) if capture.metadata.attention == "qk" else Attention(capture)


def _listed(part: Positions | None, size: int) -> NDArray[np.intp]:
    """Positions as a list; negative ones are counted from the end by slices only."""
    if part is None:
        return np.arange(size)
    if isinstance(part, slice):
        return np.arange(size)[part]
    return np.atleast_1d(np.asarray(part)).astype(np.intp)


def _within(positions: NDArray[np.intp], size: int, axis: str) -> NDArray[np.intp]:
    """`positions`, all of which the axis has; negative ones are counted from its end."""
    wrong = positions[(positions < -size) | (positions >= size)]
    if len(wrong):
        raise InputError(f"attention rows: {axis} {int(wrong[0])} is outside 0 … {size - 1}")
    return np.where(positions < 0, positions + size, positions)


def _runs(positions: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Neighbours together."""
    return np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
