"""`--text`: what stands in the cells. To add one, write a function over a block of the lens and name it in `TEXTS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attnlens.schemas.errors import AbsentError, InputError
from attnlens.schemas.nearest import did_you_mean

if TYPE_CHECKING:
    from attnlens.store.named import NamedArray
    from attnlens.store.reader import Capture

Values = npt.NDArray[Any]
Spell = Callable[[int], str]
"""A token id → legible text."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Texts of cells, made from one array of the lens.

    array: its name, None where the drawn value itself is the text. ranks: how many of its ranks are read, None for
    all, 0 where it has no such axis. line: one row's values (column,) or (column, rank) → texts.
    """

    label: str
    array: str | None
    ranks: int | None
    line: Callable[[Values, Spell], tuple[str, ...]]


def _tokens(values: Values, spell: Spell) -> tuple[str, ...]:
    return tuple(spell(token) for token in values[:, 0].tolist())


def _choices(values: Values, spell: Spell) -> tuple[str, ...]:
    return tuple(" | ".join(spell(token) for token in row if token >= 0) for row in values.tolist())


def _probabilities(values: Values, spell: Spell) -> tuple[str, ...]:
    return fractions(values[:, 0])


def _nats(values: Values, spell: Spell) -> tuple[str, ...]:
    return fractions(values)


def _ranks(values: Values, spell: Spell) -> tuple[str, ...]:
    return tuple("" if rank < 0 else str(rank) for rank in values.tolist())


def fractions(values: Values, spell: Spell | None = None) -> tuple[str, ...]:
    """Two decimals each; nothing for NaN."""
    return tuple("" if value != value else f"{value:.2f}" for value in values.tolist())


TEXTS: Mapping[str, Text] = {
    "token": Text(label="most probable token", array="lens_token", ranks=1, line=_tokens),
    "probability": Text(
        label="probability of the lens's first choice", array="lens_probability", ranks=1, line=_probabilities
    ),
    "top-k": Text(label="the lens's first choices", array="lens_token", ranks=None, line=_choices),
    "entropy": Text(label="entropy of the lens in nats", array="lens_entropy", ranks=0, line=_nats),
    "next-rank": Text(
        label="rank of the token that came next, 0 is the lens's first choice", array="next_rank", ranks=0, line=_ranks
    ),
    "weight": Text(label="the value of the colour", array=None, ranks=0, line=fractions),
}
"""What `--text` knows."""


def select_text(name: str) -> Text:
    """What `--text` names.

    Raises:
        InputError: there is none of that name.
    """
    if name not in TEXTS:
        near = did_you_mean(name, TEXTS)
        raise InputError(f"--text {name!r} is not known: expected one of {', '.join(TEXTS)}{near}")
    return TEXTS[name]


def check_text(capture: Capture, text: Text, name: str, lens: str | None) -> None:
    """See that a capture has what a text is made of. `token` goes without: it leaves cells empty.

    Raises:
        AbsentError: the capture does not have it, or no such lens.
    """
    if lens is not None and lens not in capture.lens_names:
        found = ", ".join(capture.lens_names) or "none"
        near = did_you_mean(lens, capture.lens_names)
        raise AbsentError(f"--lens {lens}: capture {capture.id} has no such lens, it has {found}{near}")
    if name == "token" or text.array is None:
        return
    array = capture.reading_name(text.array, lens)
    if array not in capture:
        raise AbsentError(f"--text {name}: capture {capture.id} has no {array}: {capture.why_absent(array)}")


_BLOCK = 1024
"""Tokens of a lens array that are read at a time, so that ranks which are not wanted are never held together."""

_BUDGET = 16 << 20
"""Bytes of such blocks that are kept."""


class Blocks:
    """A lens array (depth, token, …) of the tokens that have rows, with its first `ranks` ranks (0: it has none).

    `blocks[columns]` are the values (depth, column, …) of some tokens, upwards. Only what is asked for is read.
    """

    def __init__(self, array: NamedArray, n_row: int, ranks: int | None, depths: slice = slice(None)) -> None:
        self._array, self._n_row, self._depths = array, n_row, depths
        self._cut: tuple[slice, ...] = () if ranks == 0 else (slice(0, ranks),)
        n_depth, n_rank = len(range(array.shape[0])[depths]), ranks or max(array.shape[2:], default=1)
        most = array.chunks[1] if array.far else _BLOCK  # far away no more than a chunk has
        self._size = max(1, min(most, _BUDGET // (16 * n_depth * n_rank)))
        self._block = lru_cache(maxsize=max(2, _BUDGET // (4 * n_depth * n_rank * self._size)))(self._read)

    def __getitem__(self, columns: tuple[int, ...]) -> Values:
        places = np.asarray(columns, np.intp)
        numbers = places // self._size
        parts = [
            self._block(number)[:, places[numbers == number] - number * self._size]
            for number in np.unique(numbers).tolist()
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _read(self, number: int) -> Values:
        stop = min((number + 1) * self._size, self._n_row)
        return np.asarray(self._array[(self._depths, slice(number * self._size, stop), *self._cut)])
