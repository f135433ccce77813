"""`--scale`: what a colour stands for. Each scale is a pure function with a fixed range, so that pictures compare.

To add one, write the function and name it in `SCALES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from attnlens.render.attention.reduce import Floats
from attnlens.render.attention.row import Row
from attnlens.schemas.errors import InputError
from attnlens.schemas.nearest import did_you_mean

FLOOR = 1e-4
"""The smallest attention that `log` tells apart: float16 keeps three digits down to about here."""

LEFT_OVER = 1e-2
"""Least attention beside the sinks that `drop-sink` divides by: less is mostly float16's rounding, blown up."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A transform of attention and the words for it.

    before: over one query's attention (layer, head, key), ahead of the reduction over heads.
    after: over what the reduction made of it (layer, key).
    strip: what `before` took away (layer, head), drawn in the margin under the name `strip_label`.
    norms: whether `before` needs the lengths of value vectors.
    """

    label: str
    bar: str
    range: tuple[float, float] = (0.0, 1.0)
    ticks: tuple[tuple[float, str], ...] = ()
    before: Callable[[Floats, Row], Floats] | None = None
    after: Callable[[Floats], Floats] | None = None
    strip: Callable[[Floats, Row], Floats] | None = None
    strip_label: str = ""
    norms: bool = False


def log(weights: Floats) -> Floats:
    """log10(max(weight, 1e-4)): -4 … 0."""
    return np.asarray(np.log10(np.maximum(weights, np.float32(FLOOR))))


def rank(weights: Floats) -> Floats:
    """Place of each key in its row: (keys that are smaller + half of the other equal ones) / (keys - 1).

    0 is the smallest, 1 the largest, 0.5 for a key alone. Equal keys share the mean of their places, as in Spearman's
    rank correlation. float32 (layer, key), keys 0 … query; NaN rows stay.
    """
    count = weights.shape[-1]
    if count == 1:
        return np.where(np.isnan(weights), weights, np.float32(0.5))
    result: Floats = np.empty_like(weights)
    for place, row in enumerate(weights):
        ordered = np.sort(row)
        smaller, larger = np.searchsorted(ordered, row, "left"), np.searchsorted(ordered, row, "right")
        there = int((~np.isnan(row)).sum())
        result[place] = np.where(np.isnan(row), np.nan, (smaller + larger - 1) / 2 / max(there - 1, 1))
        if there == 1:
            result[place, ~np.isnan(row)] = 0.5
    return result


def drop_sink(weights: Floats, row: Row) -> Floats:
    """Each head's attention given that it does not look at a sink: w[k] / Σ w over keys that are none.

    Sinks (the first token and special ones) become NaN, and so does a head that has less than 0.01 left. Attention
    sinks: Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks. float32 (layer, head, key).
    """
    kept = np.where(row.sinks, np.float32(np.nan), weights)
    left = np.where(row.sinks, np.float32(0), weights).sum(axis=-1, keepdims=True)
    result: Floats = np.full_like(weights, np.nan)
    np.divide(kept, left, out=result, where=left >= LEFT_OVER)
    return result


def sink_mass(weights: Floats, row: Row) -> Floats:
    """Attention of each head to the sinks, Σ w over them: float32 (layer, head, key) → (layer, head)."""
    mass: Floats = weights[:, :, row.sinks].sum(axis=-1)
    return mass


def value_norm(weights: Floats, row: Row) -> Floats:
    """Each key's share of what a head moves: w[k]·‖f(x[k])‖ / Σ w[j]·‖f(x[j])‖ over keys j.

    f(x) is the value of a token through the head's part of the output projection (Kobayashi et al. 2020, Attention is
    Not Only a Weight): a head that looks at a token whose f(x) is short moves little. float32 (layer, head, key); NaN
    where nothing is moved.
    """
    moved = np.asarray(weights * row.norms, np.float32)
    total = moved.sum(axis=-1, keepdims=True)
    result: Floats = np.full_like(moved, np.nan)
    np.divide(moved, total, out=result, where=total > 0)
    return result


SCALES: Mapping[str, Scale] = {
    "raw": Scale(label="0 … 1 (raw)", bar="attention"),
    "log": Scale(
        label="log, 0.0001 … 1",
        bar="attention (log)",
        range=(-4.0, 0.0),
        ticks=((-4.0, "≤1e-4"), (-3.0, "0.001"), (-2.0, "0.01"), (-1.0, "0.1"), (0.0, "1")),
        after=log,
    ),
    "rank": Scale(label="rank among the keys, 0 … 1", bar="rank", after=rank),
    "drop-sink": Scale(
        label="0 … 1 without first and special tokens, their sum at the side (drop-sink)",
        bar="share",
        before=drop_sink,
        strip=sink_mass,
        strip_label="sinks",
    ),
    "value-norm": Scale(
        label="share of attention × length of the value, 0 … 1 (value-norm)",
        bar="share",
        before=value_norm,
        norms=True,
    ),
}
"""What `--scale` knows."""


def select_scale(name: str) -> Scale:
    """A scale by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in SCALES:
        near = did_you_mean(name, SCALES)
        raise InputError(f"--scale {name!r} is not known: expected one of {', '.join(SCALES)}{near}")
    return SCALES[name]
