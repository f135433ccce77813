"""Collecting what a check finds: every problem once, with its first place and how often it occurs, and notes alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.problems import Kind, Problem


class Findings:
    """Problems of one store, in the order found. Many cells with the same fault are one problem.

    A note is worth knowing and no fault of the store: its values are what its writer could compute.
    """

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._cells: dict[tuple[str, str, bool], tuple[str, str, int]] = {}
        self.checked: dict[str, int] = {}

    def add(self, where: str, kind: Kind, message: str) -> None:
        """One problem."""
        self._problems.append(Problem(where=where, kind=kind, message=message))

    def extend(self, problems: list[Problem]) -> None:
        """Several problems."""
        self._problems.extend(problems)

    def count(self, what: str, number: int = 1) -> None:
        """`number` more things were checked."""
        self.checked[what] = self.checked.get(what, 0) + number

    def cells(
        self,
        array: str,
        fault: str,
        bad: NDArray[np.bool_],
        tell: Callable[..., tuple[str, str]],
        *,
        note: bool = False,
    ) -> None:
        """Cells of `array` with one `fault`, or one that is no more than a `note`.

        Args:
            array: As "0000/attention_weight".
            fault: What is wrong, the same text for the same fault.
            bad: Which cells have it.
            tell: From the indices of the first bad cell to (where, what was found there).
        """
        number = int(np.count_nonzero(bad))
        if not number:
            return
        key = (array, fault, note)
        if key not in self._cells:
            first = np.unravel_index(int(np.argmax(bad)), bad.shape)
            self._cells[key] = (*tell(*map(int, first)), 0)
        where, found, before = self._cells[key]
        self._cells[key] = (where, found, before + number)

    def problems(self) -> list[Problem]:
        """Every problem."""
        return self._problems + self._told(notes=False)

    def notes(self) -> list[Problem]:
        """Every note."""
        return self._told(notes=True)

    def _told(self, *, notes: bool) -> list[Problem]:
        found = []
        for (_, fault, note), (where, what, number) in self._cells.items():
            if note == notes:
                more = f" (and {number - 1} more)" if number > 1 else ""
                found.append(Problem(where=where, kind="value", message=f"{what}: {fault}{more}"))
        return found
