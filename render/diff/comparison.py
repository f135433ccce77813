"""Two captures side by side: which tokens, layers and depths of A belong to which of B, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from attnlens.render.attention.source import timeline
from attnlens.render.diff.align import Pair, by_character, by_token
from attnlens.render.diff.divergence import jensen_shannon
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.schemas.nearest import did_you_mean

if TYPE_CHECKING:
    from attnlens.store.reader import Capture

Align = Literal["auto", "token", "character"]
ALIGN: tuple[Align, ...] = ("auto", "token", "character")
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class DepthRow:
    """One line of the table: lenses at depth `a` of A and `b` of B over `count` aligned tokens.

    agreement: share of tokens with the same first choice. js_low, js_high: mean bounds on the Jensen-Shannon
    divergence in nats, None where the vocabularies differ.
    """

    a: int
    b: int
    count: int
    agreement: float
    js_low: float | None
    js_high: float | None


class Comparison:
    """The aligned tokens of two captures. `pairs` are all, `drawn` those whose last tokens have rows in both.

    Raises:
        InputError: `align` is not known, or asks for ids of different vocabularies.
        AbsentError: no token of one belongs to a token of the other.
    """

    def __init__(self, a: Capture, b: Capture, align: str) -> None:
        self.a, self.b = a, b
        self.layers = a.metadata.model.n_layer, b.metadata.model.n_layer
        if align not in ALIGN:
            near = did_you_mean(align, ALIGN)
            raise InputError(f"--align {align!r} is not known: expected one of {', '.join(ALIGN)}{near}")
        if align == "token" and not self.same_vocabulary:
            raise InputError("--align token: the captures have different vocabularies, use --align character")
        self.align: Align = "token" if align == "token" or (align == "auto" and self.same_vocabulary) else "character"
        self.pairs = self._aligned()
        rows = timeline(a).n_row, timeline(b).n_row
        self.drawn = tuple(pair for pair in self.pairs if pair.last[0] < rows[0] and pair.last[1] < rows[1])
        if not self.drawn:
            raise AbsentError(
                f"no token of capture {a.id} belongs to one of capture {b.id} (aligned by {self.align}), "
                "there is nothing to compare"
            )

    @cached_property
    def same_vocabulary(self) -> bool:
        """Whether ids mean the same: sizes are equal, and no id that both captures spell is spelled differently."""
        if self.a.metadata.model.vocabulary_size != self.b.metadata.model.vocabulary_size:
            return False
        left, right = _spelled(self.a), _spelled(self.b)
        return all(right[number] == text for number, text in left.items() if number in right)

    @property
    def lens_absent(self) -> str:
        """Why lenses cannot be compared, nothing where they can."""
        for name, capture in (("A", self.a), ("B", self.b)):
            if capture.metadata.lens is None:
                return f"{name} has none, {capture.metadata.lens_absent or 'it was not stored'}"
        return ""

    @property
    def identical(self) -> bool:
        """Whether every token of both has its partner at the same position."""
        same = len(self.pairs) == self.a.n_token == self.b.n_token
        return same and all(pair.a == pair.b for pair in self.pairs)

    def layer(self, number: int) -> int:
        """The layer of B beside a layer of A: its own number, or the one at the nearest relative depth.

        The number of A's layers, which stands for the final prediction, goes with that of B's.
        """
        ours, theirs = self.layers
        if ours == theirs:
            return number
        if number == ours:
            return theirs
        return (2 * number * (theirs - 1) + max(ours - 1, 1)) // (2 * max(ours - 1, 1))

    def table(self) -> tuple[DepthRow, ...]:
        """Agreement of the lenses at every depth of A; empty where one of the captures has no lens."""
        if self.lens_absent:
            return ()
        spell = None if self.same_vocabulary else (self.a.vocabulary, self.b.vocabulary)
        return tuple(self._depth(depth, self.layer(depth), spell) for depth in range(self.layers[0] + 1))

    def _depth(self, a: int, b: int, spell: Any) -> DepthRow:
        ends = np.array([pair.last for pair in self.drawn], np.intp)
        ids_a, ids_b = _of(self.a, "lens_token", a, ends[:, 0]), _of(self.b, "lens_token", b, ends[:, 1])
        if spell is not None:
            first = zip(ids_a[:, 0].tolist(), ids_b[:, 0].tolist(), strict=True)
            same = [spell[0].get(left) == spell[1].get(right) for left, right in first]
            return DepthRow(a=a, b=b, count=len(ends), agreement=float(np.mean(same)), js_low=None, js_high=None)
        p_a, p_b = (_of(one, "lens_probability", depth, place)
                    for one, depth, place in ((self.a, a, ends[:, 0]), (self.b, b, ends[:, 1])))  # fmt: skip
        bounds = jensen_shannon(ids_a, p_a, ids_b, p_b)
        return DepthRow(
            a=a,
            b=b,
            count=len(ends),
            agreement=float((ids_a[:, 0] == ids_b[:, 0]).mean()),
            js_low=float(bounds.low.mean()),
            js_high=float(bounds.high.mean()),
        )

    def _aligned(self) -> tuple[Pair, ...]:
        if self.align == "token":
            return by_token(np.asarray(self.a.token_id), np.asarray(self.b.token_id))
        return by_character(_pieces(self.a), _pieces(self.b))


def _of(capture: Capture, name: str, depth: int, positions: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """A lens array at one depth (position, rank)."""
    array, last = capture[name], int(positions.max()) + 1
    blocks = [
        np.asarray(array[depth : depth + 1, start : min(start + _BLOCK, last)])[0] for start in range(0, last, _BLOCK)
    ]
    return np.concatenate(blocks)[positions]


def _pieces(capture: Capture) -> list[bytes]:
    """Exact bytes of each token of text; nothing for special tokens, which other tokenizers do not have."""
    special = np.asarray(capture.token_special)
    return [b"" if special[place] else capture.token_bytes(place) for place in range(capture.n_token)]


def _spelled(capture: Capture) -> dict[int, str]:
    """Texts of the ids that a capture uses."""
    known = {} if capture.metadata.lens is None else dict(capture.vocabulary)
    known.update(zip(np.asarray(capture.token_id).tolist(), capture.token_text, strict=True))
    known.pop(-1, None)
    return known
