"""Which columns one picture shows: windows of keys that walk from column 0 to the query."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from attnlens.schemas.errors import InputError


@dataclass(frozen=True)
class Window:
    """Columns of the timeline, upwards. `number` is None where one picture holds all columns."""

    columns: tuple[int, ...]
    number: int | None

    @property
    def suffix(self) -> str:
        """What a file name ends with: `_3`, or nothing for the only window."""
        return "" if self.number is None else f"_{self.number}"


def check_window(window: int, step: int) -> None:
    """Refuse a window or step below 1.

    Raises:
        InputError: one of them is.
    """
    if window < 1:
        raise InputError(f"--window {window}: a picture needs at least 1 column")
    if step < 1:
        raise InputError(f"--step {step}: windows have to move by at least 1 column")


def window_starts(n_column: int, window: int, step: int) -> tuple[int, ...]:
    """Where the windows over `n_column` columns start: 0, step, 2·step …; the last one ends at the last column."""
    last = n_column - window
    return (*range(0, last, step), last) if last > 0 else (0,)


def n_columns(query: int, tokens: Sequence[int] | None) -> int:
    """How many of `tokens` (upwards; None: all) are columns of this query."""
    return query + 1 if tokens is None else bisect_right(tokens, query)


def windows(query: int, window: int = 32, step: int = 5, tokens: Sequence[int] | None = None) -> tuple[Window, ...]:
    """The windows over columns 0 … query, or over those of them that are in `tokens` (upwards).

    With a step larger than the window the columns between two windows are in no picture.

    Raises:
        InputError: window or step is below 1.
    """
    check_window(window, step)
    columns = range(query + 1) if tokens is None else tokens[: n_columns(query, tokens)]
    starts = window_starts(len(columns), window, step) if columns else ()
    parts = [tuple(columns[start : start + window]) for start in starts]
    return tuple(Window(part, None if len(parts) == 1 else number) for number, part in enumerate(parts))
