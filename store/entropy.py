"""What the top k of a distribution say of its entropy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT_ENTROPY = "probe: lens entropy"
"""The self-check of captures whose entropies were held against float64 when they were made. Earlier writers lost digits
where logits are large, by up to 1.5e-3 nat."""

_ROUNDING = 2.0**-18
"""How far a stored probability may be off, relative to itself: 32 units in the last place of float32. Storing it takes
half of one, and an exponential of vector instructions up to 20."""

Floats = NDArray[np.float64]


def entropy_bounds(probability: ArrayLike, size: int) -> tuple[Floats, Floats]:
    """The least and the largest entropy (…), in nats, that the k highest probabilities (…, rank) allow.

    Of `size` tokens the others share what is left, r. Entropy is concave, so it is least where as many of them as
    possible have p_k, the most that one may have, and one has the rest; it is largest where all have r / (size - k).
    Both bounds are as wide as float32 numbers need. NaN where a probability is.
    """
    top = np.clip(np.asarray(probability, np.float64), 0, 1)
    others = size - top.shape[-1]
    of_top = _terms(top).sum(axis=-1)
    rest = 1 - top.sum(axis=-1)
    rests = [np.clip(rest + shift, 0, 1) * (others > 0) for shift in (-_ROUNDING, _ROUNDING)]
    lowest = of_top + np.minimum(*(_concentrated(left, top[..., -1]) for left in rests))
    highest = of_top + np.maximum(*(_terms(left) + left * np.log(max(others, 1)) for left in rests))
    return lowest - _slack(lowest), highest + _slack(highest)


def _terms(probability: Floats) -> Floats:
    """-p ln p."""
    return -probability * np.log(np.where(probability > 0, probability, 1))


def _concentrated(rest: Floats, most: Floats) -> Floats:
    """What tokens that share `rest`, each of them `most` at the most, add to the entropy at the least."""
    count = np.floor(rest / np.where(most > 0, most, 1)) * (most > 0)
    return count * _terms(most) + _terms(np.clip(rest - count * most, 0, most))


def _slack(entropy: Floats) -> Floats:
    """How far the entropy itself may be off, 1e-5 of it or 1e-6 nat, and what rounding of p changes in p ln p."""
    return np.maximum(1e-6, 1e-5 * entropy) + _ROUNDING * (1 + entropy)
