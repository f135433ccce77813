"""Which tokens of two captures belong together.

By token: the same ids, found from both ends and then as difflib's matching blocks. By character: the same text, cut
where both tokenizers have an edge, so that several tokens of one may stand for several of the other.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

_WORD = re.compile(rb"\s*\S+|\s+")

Block = tuple[int, int, int]
"""Equal runs: start in A, start in B, length."""


@dataclass(frozen=True)
class Pair:
    """The same piece of text in both captures: timeline positions in A and in B, upwards, at least one each."""

    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def last(self) -> tuple[int, int]:
        """The tokens that end the piece: what follows the piece is predicted there."""
        return self.a[-1], self.b[-1]


def by_token(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> tuple[Pair, ...]:
    """Single tokens with the same id, in order. Redacted tokens (-1) match nothing."""
    left: list[Hashable] = [number if number >= 0 else ("A", place) for place, number in enumerate(a.tolist())]
    right: list[Hashable] = [number if number >= 0 else ("B", place) for place, number in enumerate(b.tolist())]
    return tuple(
        Pair((start_a + step,), (start_b + step,))
        for start_a, start_b, length in equal_runs(left, right)
        for step in range(length)
    )


def by_character(a: Sequence[bytes], b: Sequence[bytes]) -> tuple[Pair, ...]:
    """Smallest pieces of equal text that begin and end with a token in both.

    Args:
        a: Bytes of each token of A; empty for those that are no text, such as special tokens.
        b: The same of B.
    """
    words_a, words_b = _WORD.findall(b"".join(a)), _WORD.findall(b"".join(b))
    starts_a, starts_b = _edges(words_a), _edges(words_b)
    tokens_a, tokens_b = _Edges(a), _Edges(b)
    pairs: list[Pair] = []
    for word_a, word_b, count in _joined(equal_runs(words_a, words_b)):
        begin, length = starts_a[word_a], starts_a[word_a + count] - starts_a[word_a]
        shift = starts_b[word_b] - begin
        cuts = sorted(
            offset for offset in tokens_a.between(begin, begin + length) if offset + shift in tokens_b.offsets
        )
        for start, stop in pairwise(cuts):
            pairs.append(Pair(tokens_a.inside(start, stop), tokens_b.inside(start + shift, stop + shift)))
    return tuple(pairs)


def equal_runs(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[Block]:
    """Runs of equal items, in order and without crossing: the common beginning, the common end, and what is between."""
    most = min(len(a), len(b))
    head = next((place for place in range(most) if a[place] != b[place]), most)
    tail = next((place for place in range(most - head) if a[-1 - place] != b[-1 - place]), most - head)
    inner = SequenceMatcher(None, a[head : len(a) - tail], b[head : len(b) - tail], autojunk=False)
    found = [(0, 0, head)]
    found += [(head + one.a, head + one.b, one.size) for one in inner.get_matching_blocks()]
    found.append((len(a) - tail, len(b) - tail, tail))
    return [run for run in found if run[2]]


def _joined(found: Sequence[Block]) -> list[Block]:
    """Runs that follow each other without a gap, as one."""
    joined: list[Block] = []
    for start_a, start_b, length in found:
        if joined and (joined[-1][0] + joined[-1][2], joined[-1][1] + joined[-1][2]) == (start_a, start_b):
            joined[-1] = (*joined[-1][:2], joined[-1][2] + length)
        else:
            joined.append((start_a, start_b, length))
    return joined


def _edges(pieces: Sequence[bytes]) -> list[int]:
    """Where pieces begin, and where the last one ends."""
    return [0, *accumulate(map(len, pieces))]


class _Edges:
    """Byte offsets at which tokens with text begin or end, and the tokens between two of them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._positions = [position for position, piece in enumerate(pieces) if piece]
        self._list = _edges([pieces[position] for position in self._positions])
        self.offsets = {offset: place for place, offset in enumerate(self._list)}

    def between(self, start: int, stop: int) -> list[int]:
        first, last = np.searchsorted(self._list, [start, stop + 1]).tolist()
        return self._list[first:last]

    def inside(self, start: int, stop: int) -> tuple[int, ...]:
        return tuple(self._positions[self.offsets[start] : self.offsets[stop]])
