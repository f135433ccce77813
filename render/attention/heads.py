"""`--heads`: many heads, one colour. What the texts mean is in docs/rendering.md.

To add a reduction, write a pure function over (layer, head, key) and name it in `REDUCE`; to add a choice of heads,
one that scores them and name it in `SCORES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from attnlens.render.attention.reduce import REDUCE, Floats, Mask, Reduce, entropy, highest, induction, lowest
from attnlens.render.attention.row import Row
from attnlens.render.text.numbers import runs
from attnlens.schemas.errors import InputError
from attnlens.schemas.metadata import LayerInfo
from attnlens.schemas.nearest import did_you_mean
from attnlens.schemas.ranges import parse_ranges

Choose = Callable[[Floats, Row], Mask]

Stored = Literal["max", "mean"]
STORED: Mapping[str, Stored] = {"max": "max", "mean": "mean"}
"""Reductions that a store holds ready-made for generated queries."""

SCORES: Mapping[str, tuple[Callable[[Floats, Row, int], Mask], str]] = {
    "entropy": (lambda weights, row, count: lowest(entropy(weights), count), "lowest entropy"),
    "induction": (
        lambda weights, row, count: highest(induction(weights, row.ids), count),
        "highest induction score",
    ),
}
"""What `top:N:` knows: which heads it takes in each layer, and how that is called."""

ROLLOUT = "rollout"
EACH = "each"
_EXPECTED = f"{', '.join(REDUCE)}, LIST:mean, kv-group:N, top:N:entropy, top:N:induction, {ROLLOUT}, {EACH}"
_COUNT = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """A reduction and the heads it goes over.

    heads: those that are read, None for all. choose: which of the heads read take part, (layer, head); None for all.
    stored: the reduction's name in the store, if it may be there. rollout: not a reduction, but attention rollout.
    suffix: what the names of these pictures end with.
    """

    reduce: Reduce
    heads: tuple[int, ...] | None
    stored: Stored | None
    label: str
    choose: Choose | None = None
    rollout: bool = False
    suffix: str = ""

    def apply(self, weights: Floats, scaled: Floats, row: Row) -> Floats:
        """Reduce `scaled` (layer, head, key) to (layer, key); heads are chosen by their attention `weights`."""
        if self.choose is None:
            return self.reduce(scaled)
        mask = self.choose(weights, row)
        return self.reduce(np.where(mask[:, :, None], scaled, np.float32(np.nan)))


def select_heads(text: str, n_head: int, layers: Sequence[LayerInfo] = ()) -> Heads:
    """What `text` names, over the heads of this model.

    Raises:
        InputError: it names nothing that is known, or heads that this model does not have.
    """
    what, _, name = text.rpartition(":")
    if not what or name not in REDUCE:
        what, name = text, "max"
    if what in REDUCE and what == text:
        plural = "head" if n_head == 1 else "heads"
        return Heads(reduce=REDUCE[text], heads=None, stored=STORED.get(text), label=f"{text} over {n_head} {plural}")
    if text == ROLLOUT:
        label = "rollout of the mean over heads"
        return Heads(reduce=REDUCE["mean"], heads=None, stored=None, label=label, rollout=True)
    if what.startswith("kv-group:"):
        return _kv_group(what, name, layers)
    if what.startswith("top:"):
        return _top(what, name, n_head)
    try:
        heads = parse_ranges(what, n_head, option="--heads", thing="head")
    except InputError as error:
        near = did_you_mean(what, (*REDUCE, ROLLOUT))
        raise InputError(f"{error}; or one of {_EXPECTED}{near}") from None
    label = f"head {heads[0]} of {n_head}" if len(heads) == 1 else f"{name} over heads {runs(heads, '–', ', ')}"
    return Heads(reduce=REDUCE[name], heads=heads, stored=None, label=label)


def each_head(n_head: int) -> tuple[Heads, ...]:
    """Every head on its own: `--heads each`."""
    return tuple(
        Heads(reduce=REDUCE["max"], heads=(head,), stored=None, label=f"head {head} of {n_head}", suffix=f"_h{head}")
        for head in range(n_head)
    )


def _kv_group(what: str, name: str, layers: Sequence[LayerInfo]) -> Heads:
    """`kv-group:N`: the heads that share key and value head N, by the per-layer table."""
    number = _number(what, "kv-group:", "N")
    most = max((layer.n_kv_head for layer in layers), default=0)
    if number >= most:
        have = f"the layers have up to {most} (0 … {most - 1})" if most else "the layers have none"
        raise InputError(f"--heads {what}: there is no key/value head {number}, {have}")
    groups = [kv_group(layer, number) for layer in layers]
    heads = tuple(sorted({head for group in groups for head in group}))
    taken: Mask = np.array([[head in group for head in heads] for group in groups], np.bool_)

    def choose(weights: Floats, row: Row) -> Mask:
        return np.asarray(taken[list(row.layers)])

    label = f"{name} over heads {runs(heads, '–', ', ')} (key/value head {number})"
    return Heads(reduce=REDUCE[name], heads=heads, stored=None, label=label, choose=choose)


def kv_group(layer: LayerInfo, number: int) -> range:
    """The query heads of a layer that share key/value head `number`: n_head / n_kv_head neighbours, as in GQA."""
    if number >= layer.n_kv_head:
        return range(0)
    size = layer.n_head // layer.n_kv_head
    return range(number * size, (number + 1) * size)


def _top(what: str, name: str, n_head: int) -> Heads:
    """`top:N:SCORE`: N heads in each layer, chosen anew for every query."""
    number, _, score = what.removeprefix("top:").partition(":")
    if score not in SCORES:
        known = " or ".join(f"top:N:{key}" for key in SCORES)
        raise InputError(f"--heads {what!r} is not understood: expected {known}")
    count = _number(f"top:{number}", "top:", f"N:{score}")
    if not 1 <= count <= n_head:
        raise InputError(f"--heads {what}: expected 1 to {n_head} heads a layer")
    mask, words = SCORES[score]
    which = "the head" if count == 1 else f"{name} over the {count} heads"
    return Heads(
        reduce=REDUCE[name],
        heads=None,
        stored=None,
        label=f"{which} of {words} in each layer",
        choose=lambda weights, row: mask(weights, row, count),
    )


def _number(what: str, before: str, pattern: str) -> int:
    number = what.removeprefix(before)
    if not _COUNT.fullmatch(number):
        raise InputError(f"--heads {what!r} is not understood: expected {before}{pattern} with a number N")
    return int(number)
