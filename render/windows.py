"""Which columns one picture shows: windows of keys that walk from column 0 to the query."""

from __future__ import annotations

from dataclasses import dataclass

from attnlens.schemas.errors import InputError


@dataclass(frozen=True)
class Window:
    """Columns start … stop-1 of the timeline. `number` is None where one picture holds all columns."""

    start: int
    stop: int
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


def windows(query: int, window: int = 32, step: int = 5) -> tuple[Window, ...]:
    """The windows over columns 0 … query.

    Starts are 0, step, 2·step …; the last window is moved back so that it ends at the query. With a step larger
    than the window the columns between two windows are in no picture.

    Raises:
        InputError: window or step is below 1.
    """
    check_window(window, step)
    columns = query + 1
    if columns <= window:
        return (Window(0, columns, None),)
    last = columns - window
    starts = [*range(0, last, step), last]
    return tuple(Window(start, start + window, number) for number, start in enumerate(starts))
