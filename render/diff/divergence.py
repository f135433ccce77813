"""How far two lenses are apart, from what stores keep of them: the k most probable tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bounds:
    """The Jensen-Shannon divergence in nats lies between `low` and `high` (position). ln 2 is the most there is."""

    low: Probabilities
    high: Probabilities


def jensen_shannon(ids_a: Ids, p_a: npt.NDArray[np.float32], ids_b: Ids, p_b: npt.NDArray[np.float32]) -> Bounds:
    """Bounds on JS(P, Q) = ½ KL(P ‖ M) + ½ KL(Q ‖ M), M = (P + Q) / 2, of which only the first k tokens are known.

    JS is a sum over tokens of f(p, q) = ½ (p ln 2p/(p+q) + q ln 2q/(p+q)). Tokens that both sides keep are exact. Of
    all others only the sums r and s are known: together they add at least f(r, s), by the data processing inequality,
    and at most ½ ln 2 · (r + s), because f(p, q) ≤ ½ ln 2 · |p - q|.

    Args:
        ids_a, p_a: ids and probabilities (position, rank) of A's lens; ids -1 are none.
        ids_b, p_b: the same of B.
    """
    same = (ids_a[:, :, None] == ids_b[:, None, :]) & (ids_a[:, :, None] >= 0)  # (position, rank of A, rank of B)
    p = np.where(ids_a >= 0, p_a, 0).astype(np.float64)
    q = np.where(ids_b >= 0, p_b, 0).astype(np.float64)
    partner = np.einsum("nij,nj->ni", same, q)
    kept_a, kept_b = same.any(axis=2), same.any(axis=1)
    known = np.where(kept_a, term(p, partner), 0).sum(axis=1)
    rest_a = np.clip(1 - np.where(kept_a, p, 0).sum(axis=1), 0, 1)
    rest_b = np.clip(1 - np.where(kept_b, q, 0).sum(axis=1), 0, 1)
    most = np.log(2)
    return Bounds(
        low=np.minimum(known + term(rest_a, rest_b), most),
        high=np.minimum(known + most / 2 * (rest_a + rest_b), most),
    )


def term(p: Probabilities, q: Probabilities) -> Probabilities:
    """½ (p ln 2p/(p+q) + q ln 2q/(p+q)), 0 where both are 0."""
    total = p + q
    result = np.zeros(np.broadcast_shapes(p.shape, q.shape))
    for part in (p, q):
        ratio = np.ones_like(result)
        np.divide(2 * part, total, out=ratio, where=part > 0)
        result += part / 2 * np.log(ratio)
    return np.maximum(result, 0)
