"""A picture before it is drawn: arrays and strings. What makes scenes knows no pixels, what draws them no store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Labels = tuple[tuple[str, ...], ...]
Kind = Literal["query", "map", "diff"]
Theme = Literal["light", "dark"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What holds for every picture of one capture.

    `lens_absent` says why the capture has no lens, None where it has one. `special` are the positions of special
    tokens, `n_layer` is also the number of the row that shows the final prediction.
    """

    model: str
    capture: str
    status: str
    n_prompt: int
    n_layer: int
    special: frozenset[int]
    lens_absent: str | None
    reduction: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A token and the probability that was given to it."""

    text: str
    probability: float


@dataclass(frozen=True, eq=False)
class Strip:
    """A narrow column beside the cells: one value a row (NaN = none), coloured as the cells are but on 0 … 1."""

    label: str
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One picture: `matrix` float32 (row, column) as it is drawn, between the ends of `scale`; NaN = not there.

    kind: `query` (layers × keys of one query), `map` (queries × keys of one layer) or `diff` (as query, A and B).
    query, token, predicted, next: who looks and what it says; query is None where rows are queries.
    rows, columns: their numbers. row_labels, column_labels: texts beside these numbers, empty for none.
    labels: text of the cells (row, column).
    scale_name, text_name: the names of `--scale` and `--text` in words. bar: what the colour bar counts.
    ticks: value and text of the bar's ticks; empty for evenly spaced ones.
    headline, details: words that take the place of those that `caption` makes.
    recipe: JSON values from which the picture can be drawn again.
    """

    subject: Subject
    query: int | None
    token: str
    predicted: Prediction | None
    next: str | None
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    matrix: npt.NDArray[np.float32]
    labels: Labels
    colormap: str
    scale: tuple[float, float] = (0.0, 1.0)
    kind: Kind = "query"
    theme: Theme = "light"
    row_name: str = "layer"
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    scale_name: str = "0 … 1"
    text_name: str = "token"
    bar: str = ""
    ticks: tuple[tuple[float, str], ...] = ()
    strip: Strip | None = None
    headline: str = ""
    details: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def boundary(self) -> int | None:
        """How many columns belong to the prompt, where prompt and generation both show; else None."""
        return self._crossing(self.columns)

    @property
    def row_boundary(self) -> int | None:
        """The same of the rows, where rows are queries."""
        return self._crossing(self.rows) if self.kind == "map" else None

    @property
    def final_row(self) -> int | None:
        """Index of the row that shows the final prediction, None where it is left out."""
        last = self.kind != "map" and self.rows[-1] == self.subject.n_layer
        return len(self.rows) - 1 if last else None

    def _crossing(self, positions: tuple[int, ...]) -> int | None:
        count = sum(position < self.subject.n_prompt for position in positions)
        return count if 0 < count < len(positions) else None
