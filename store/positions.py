"""Which entries of an axis an index means: one rule for every argument of the Python API that takes positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import AbsentError, InputError
from attnlens.schemas.ranges import parse_ranges

if TYPE_CHECKING:
    from attnlens.store.reader import Capture

Positions = SupportsIndex | slice | str | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]
"""A number, a slice, a list as text (`3,5-7`), numbers, or a mask as long as the axis. Negative: from the end."""
TOKENS = frozenset({"token", "query", "key", "generated"})
"""Axes whose entries are tokens."""
SHOWN = 20
"""Entries that a message lists."""


def positions(part: Positions | None, size: int, *, axis: str, where: str) -> NDArray[np.intp]:
    """The entries (position) that `part` means of an axis, all in 0 … size - 1; None means all of them.

    As Python and numpy count: -1 is the last, a slice is cut off at the ends, a mask has `size` flags; order and
    repetitions stay.

    Args:
        part: The index.
        size: Length of the axis.
        axis: Its name, for the message.
        where: What is indexed, for the message.

    Raises:
        InputError: a position outside the axis, or something that is no position: a fraction, a single flag, a mask of
            another length, a table.
    """
    if isinstance(part, str):
        return np.asarray(parse_ranges(part, size, option=f"{where}: {axis}", thing=axis), np.intp)
    try:
        if part is None or isinstance(part, slice):
            return np.arange(size)[slice(None) if part is None else part]
        chosen = np.asarray(part)
    except (TypeError, ValueError):
        raise no_position(part, axis, where) from None
    if chosen.dtype.kind == "b" and chosen.ndim == 1 and chosen.size:
        if len(chosen) != size:
            raise InputError(f"{where}: the mask along {axis} has {len(chosen)} flags, expected {size}")
        return np.flatnonzero(chosen)
    if chosen.ndim > 1 or (chosen.dtype.kind not in "iu" and chosen.size):
        raise no_position(part, axis, where)
    wrong = np.atleast_1d(chosen)[np.atleast_1d((chosen < -size) | (chosen >= size))]
    if len(wrong):
        there = f"outside 0 … {size - 1}" if size else "asked for, and there is none"
        raise InputError(f"{where}: {axis} {int(wrong[0])} is {there}")
    found = np.atleast_1d(chosen).astype(np.intp)
    return np.where(found < 0, found + size, found)


def position(part: SupportsIndex, size: int, *, axis: str, where: str) -> int:
    """The one entry that `part` means.

    Raises:
        InputError: as `positions`, or it is several.
    """
    given: Any = part
    if given is None or isinstance(given, slice | str) or np.ndim(given):
        raise InputError(f"{where}: {axis} {part!r} is not understood: expected one whole number")
    return int(positions(part, size, axis=axis, where=where)[0])


def check_kept(capture: Capture, axis: str, cells: NDArray[np.intp] | range, what: str) -> None:
    """Refuse entries that a crop took away: `cells` of an axis, by position. `what` is asked for, as "attention".

    Raises:
        AbsentError: one is gone.
    """
    kept = capture.kept.get(axis)
    if kept is None:
        return
    asked = np.asarray(cells, np.intp)
    gone = asked[~kept[asked]]
    if not len(gone):
        return
    if axis in TOKENS:
        number = int(gone[0]) + (capture.n_prompt - 1 if axis == "generated" else 0)
        raise AbsentError(f"capture {capture.id}: {what} of token {number} was cropped away")
    raise AbsentError(
        f"capture {capture.id}: {axis} {int(gone[0])} was cropped away; there are {listed(np.flatnonzero(kept))}"
    )


def listed(numbers: NDArray[np.intp]) -> str:
    """The first numbers, for a message."""
    return ", ".join(map(str, numbers[:SHOWN].tolist())) + (", …" if len(numbers) > SHOWN else "")


def no_position(part: object, axis: str, where: str) -> InputError:
    """The error of an index that means no entries of an axis."""
    shown = repr(part)
    shown = f"{shown[:60]}…" if len(shown) > 60 else shown
    return InputError(
        f"{where}: {shown} along {axis} is no position; expected whole numbers (-1 is the last), a slice, a mask, or a "
        "list as text (3,5-7)"
    )
