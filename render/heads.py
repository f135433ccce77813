"""Reductions of the head axis: many heads, one colour.

To add one, write a pure function over (layer, head, key) and name it in `REDUCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from attnlens.render.selection import select
from attnlens.schemas.errors import InputError

Floats = npt.NDArray[np.float32]
Reduce = Callable[[Floats], Floats]


def maximum(weights: Floats) -> Floats:
    """Largest over heads: float32 (layer, head, key) → (layer, key). NaN where no head has a value."""
    return np.asarray(np.fmax.reduce(weights, axis=1))


def minimum(weights: Floats) -> Floats:
    """Smallest over heads: float32 (layer, head, key) → (layer, key). NaN where no head has a value."""
    return np.asarray(np.fmin.reduce(weights, axis=1))


def mean(weights: Floats) -> Floats:
    """Mean over heads: float32 (layer, head, key) → (layer, key). NaN where no head has a value."""
    there = ~np.isnan(weights)
    count = there.sum(axis=1, dtype=np.float32)
    total = np.where(there, weights, np.float32(0)).sum(axis=1, dtype=np.float32)
    result: Floats = np.full_like(total, np.nan)
    np.divide(total, count, out=result, where=count > 0)
    return result


REDUCE: Mapping[str, Reduce] = {"max": maximum, "mean": mean, "min": minimum}
"""What `--heads` knows by name, each over all heads."""

Stored = Literal["max", "mean"]
STORED: Mapping[str, Stored] = {"max": "max", "mean": "mean"}
"""Reductions that a store holds ready-made for generated queries."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """A reduction and the heads it goes over. `heads` None: all of them. `stored`: its name in the store, if there."""

    reduce: Reduce
    heads: tuple[int, ...] | None
    stored: Stored | None
    label: str


def select_heads(text: str, n_head: int) -> Heads:
    """The reduction that `text` names: `max`, `mean`, `min`, or head numbers (`0,3,5-7`), which are reduced by max.

    Raises:
        InputError: `text` is neither a name nor a list of heads of this model.
    """
    plural = "head" if n_head == 1 else "heads"
    if reduce := REDUCE.get(text):
        return Heads(reduce=reduce, heads=None, stored=STORED.get(text), label=f"{text} over {n_head} {plural}")
    try:
        heads = select(text, n_head, option="--heads", thing="head")
    except InputError as error:
        raise InputError(f"{error}; or one of {', '.join(REDUCE)}") from None
    if len(heads) == 1:
        return Heads(reduce=maximum, heads=heads, stored=None, label=f"head {heads[0]} of {n_head}")
    return Heads(reduce=maximum, heads=heads, stored=None, label=f"max over heads {_runs(heads)}")


def _runs(numbers: tuple[int, ...]) -> str:
    """`0, 3, 5–7` for 0, 3, 5, 6, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
