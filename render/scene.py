"""A picture before it is drawn: arrays and strings. What makes scenes knows no pixels, what draws them no store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attnlens.render.windows import Window

Labels = tuple[tuple[str, ...], ...]


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything that one query's pictures show.

    `attention` float32 (row, column), columns 0 … query, probabilities in 0 … 1: row r is layer r's attention from
    the query to the column, NaN where layer r has no attention; the row of the final prediction is 0.
    `labels` (row, column): row 0 the token itself, row r what the lens reads from depth r; empty without a lens.
    `predicted` is the lens's first choice at the last depth, `next` the token that really came next if it is another.
    """

    query: int
    token: str
    predicted: Prediction | None
    next: str | None
    rows: tuple[int, ...]
    attention: npt.NDArray[np.float32]
    labels: Labels


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One picture: `matrix` float32 (row, column) on `scale`, `labels` (row, column), row numbers, timeline columns."""

    subject: Subject
    query: int
    token: str
    predicted: Prediction | None
    next: str | None
    rows: tuple[int, ...]
    columns: range
    matrix: npt.NDArray[np.float32]
    labels: Labels
    colormap: str
    scale: tuple[float, float] = (0.0, 1.0)

    @property
    def boundary(self) -> int | None:
        """How many columns belong to the prompt, where prompt and generation both show; else None."""
        count = self.subject.n_prompt - self.columns.start
        return count if 0 < count < len(self.columns) else None

    @property
    def final_row(self) -> int | None:
        """Index of the row that shows the final prediction, None where it is left out."""
        return len(self.rows) - 1 if self.rows[-1] == self.subject.n_layer else None


def build_scene(evidence: Evidence, window: Window, subject: Subject, *, colormap: str) -> Scene:
    """The scene of one window: `evidence` cut to the window's columns."""
    columns = slice(window.start, window.stop)
    return Scene(
        subject=subject,
        query=evidence.query,
        token=evidence.token,
        predicted=evidence.predicted,
        next=evidence.next,
        rows=evidence.rows,
        columns=range(window.start, window.stop),
        matrix=evidence.attention[:, columns],
        labels=tuple(row[columns] for row in evidence.labels),
        colormap=colormap,
    )
