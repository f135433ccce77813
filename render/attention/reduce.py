"""Reductions of the head axis, and scores of heads. Pure functions over attention (layer, head, key) of one query.

NaN is a head or layer that is not there: reductions skip it, and are NaN where nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Reduce = Callable[[Floats], Floats]


def maximum(weights: Floats) -> Floats:
    """Largest over heads: float32 (layer, head, key) → (layer, key)."""
    return np.asarray(np.fmax.reduce(weights, axis=1))


def minimum(weights: Floats) -> Floats:
    """Smallest over heads: float32 (layer, head, key) → (layer, key)."""
    return np.asarray(np.fmin.reduce(weights, axis=1))


def mean(weights: Floats) -> Floats:
    """Mean over heads: float32 (layer, head, key) → (layer, key)."""
    there = ~np.isnan(weights)
    count = there.sum(axis=1, dtype=np.float32)
    total = np.where(there, weights, np.float32(0)).sum(axis=1, dtype=np.float32)
    result: Floats = np.full_like(total, np.nan)
    np.divide(total, count, out=result, where=count > 0)
    return result


def median(weights: Floats) -> Floats:
    """Median over heads: float32 (layer, head, key) → (layer, key). Of an even number the mean of the middle two."""
    ordered = np.sort(weights, axis=1)  # NaN last
    count = (~np.isnan(weights)).sum(axis=1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, weights.shape[1] - 1), axis=1)
    return np.asarray((low + high)[:, 0] / np.float32(2))


REDUCE: Mapping[str, Reduce] = {"max": maximum, "mean": mean, "min": minimum, "median": median}
"""Reductions by name."""


def entropy(weights: Floats) -> Floats:
    """Entropy of each head's row in nats, -Σ p ln p with 0 ln 0 = 0: float32 (layer, head, key) → (layer, head).

    0 for a head that looks at one token, ln n for one that looks at n tokens alike.
    """
    terms = np.zeros_like(weights)
    np.log(weights, out=terms, where=weights > 0)
    return np.asarray(np.float32(0) - (weights * terms).sum(axis=2))


def induction(weights: Floats, ids: npt.NDArray[np.int32]) -> Floats:
    """Attention to the tokens after earlier occurrences of the query's token: (layer, head, key) → (layer, head).

    Σ of weights[key] over keys 1 … query with ids[key - 1] = ids[query], where key - 1 < query (the score of Olsson et
    al. 2022, In-context Learning and Induction Heads, for one query). NaN where the token did not occur before.

    Args:
        weights: keys 0 … query.
        ids: token ids (key); the last one is the query's. Redacted ids (-1) match nothing.
    """
    after = np.flatnonzero((ids[:-1] == ids[-1]) & (ids[:-1] >= 0)) + 1
    if not after.size:
        return np.full(weights.shape[:2], np.nan, np.float32)
    return np.asarray(weights[:, :, after].sum(axis=2))


def lowest(scores: Floats, count: int) -> Mask:
    """The `count` heads of smallest score in each layer: (layer, head) → bool. Of equals the first, never a NaN."""
    ranks = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray((ranks < count) & ~np.isnan(scores))


def highest(scores: Floats, count: int) -> Mask:
    """The `count` heads of largest score in each layer: (layer, head) → bool. Of equals the first, never a NaN."""
    return lowest(-scores, count)
