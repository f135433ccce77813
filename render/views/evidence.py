"""What the pictures of one query show, before it is cut into windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from attnlens.render.choice.windows import Window
from attnlens.render.scene import Labels, Prediction, Scene, Strip, Subject, Theme
from attnlens.render.text.numbers import runs

Texts = Callable[[tuple[int, ...], npt.NDArray[np.float32]], Labels]


def _no_names(columns: tuple[int, ...]) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything that one query's pictures show.

    `attention` float32 (row, column), columns 0 … query, on the drawn scale: row r is layer r's attention from
    the query to the column, NaN where layer r has no attention; the row of the final prediction is 0.
    `texts` makes the labels (row, column) of some columns from these and their part of `attention`.
    `names` are texts for the columns' numbers, none where the cells show the tokens themselves.
    `predicted` is the lens's first choice at the last depth, `next` the token that really came next if it is another.
    """

    query: int
    token: str
    predicted: Prediction | None
    next: str | None
    rows: tuple[int, ...]
    attention: npt.NDArray[np.float32]
    texts: Texts
    names: Callable[[tuple[int, ...]], tuple[str, ...]] = _no_names
    strip: Strip | None = None


@dataclass(frozen=True, kw_only=True)
class Style:
    """What all pictures of a run have in common: colours, the scale and its words (see `Scene`)."""

    colormap: str
    theme: Theme = "light"
    scale: tuple[float, float] = (0.0, 1.0)
    scale_name: str = "0 … 1"
    text_name: str = "token"
    bar: str = ""
    ticks: tuple[tuple[float, str], ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)


def build_scene(evidence: Evidence, window: Window, subject: Subject, style: Style) -> Scene:
    """The scene of one window: `evidence` cut to the window's columns."""
    columns = window.columns
    gaps = columns[-1] - columns[0] + 1 > len(columns)
    matrix = evidence.attention[:, list(columns) if gaps else slice(columns[0], columns[-1] + 1)]
    return Scene(
        subject=subject,
        query=evidence.query,
        token=evidence.token,
        predicted=evidence.predicted,
        next=evidence.next,
        rows=evidence.rows,
        columns=columns,
        column_labels=evidence.names(columns),
        matrix=matrix,
        labels=evidence.texts(columns, matrix),
        colormap=style.colormap,
        theme=style.theme,
        scale=style.scale,
        scale_name=style.scale_name,
        text_name=style.text_name,
        bar=style.bar,
        ticks=style.ticks,
        strip=evidence.strip,
        recipe={**style.recipe, "query": evidence.query, "columns": runs(columns), "reduction": subject.reduction},
    )
