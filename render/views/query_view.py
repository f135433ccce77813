"""The pictures of single queries: layers × keys, one for every window of columns."""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from attnlens.render.attention.reduce import Floats
from attnlens.render.attention.source import Source, layers_kept, timeline
from attnlens.render.choice.layers import select_rows
from attnlens.render.choice.queries import select_queries, stem
from attnlens.render.choice.windows import n_columns, window_starts, windows
from attnlens.render.options import RenderOptions
from attnlens.render.scene import Labels, Scene, Strip
from attnlens.render.views.evidence import Evidence, build_scene
from attnlens.render.views.settings import Settings, select_tokens
from attnlens.schemas.errors import InputError

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


class QueryView:
    """Pictures of single queries. Raises as `open_view` does."""

    def __init__(self, capture: Capture, options: RenderOptions) -> None:
        self._capture, self._options = capture, options
        self._n_layer = capture.metadata.model.n_layer
        self._rows = select_rows(options.layers, self._n_layer, layers_kept(capture))
        self._tokens = select_tokens(options.tokens, capture)
        self._settings = Settings(capture, options, heads=options.heads, text=options.text or "token")
        queries = select_queries(options.queries, timeline(capture))
        self.units = tuple(query for query in queries if self._tokens is None or self._tokens[0] <= query)
        if not self.units:
            raise InputError(f"--tokens {options.tokens}: all queries come before them, no column is left")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the largest picture."""
        return len(self._rows), min(self._options.window, n_columns(self.units[-1], self._tokens))

    def stems(self, unit: int) -> tuple[str, ...]:
        """Names of a query's pictures, without ending."""
        name = stem(unit, self._capture.n_prompt)
        starts = window_starts(n_columns(unit, self._tokens), self._options.window, self._options.step)
        suffixes = [""] if len(starts) == 1 else [f"_{number}" for number in range(len(starts))]
        return tuple(f"{name}{suffix}{heads.suffix}" for heads in self._settings.heads for suffix in suffixes)

    def scenes(self, unit: int, wanted: Container[str] | None = None) -> Iterator[tuple[str, Scene]]:
        """Those of a query's pictures that are wanted, each with its stem."""
        settings, names = self._settings, iter(self.stems(unit))
        parts = windows(unit, self._options.window, self._options.step, self._tokens)
        for subject, (values, mass) in zip(settings.subjects, self._source.rows([unit])[0], strict=True):
            evidence = self._evidence(unit, values, mass)
            for part in parts:
                name = next(names)
                if wanted is None or name in wanted:
                    yield name, build_scene(evidence, part, subject, settings.style)

    @cached_property
    def _source(self) -> Source:
        return self._settings.source(tuple(row for row in self._rows if row < self._n_layer))

    def _evidence(self, query: int, values: Floats, mass: Floats | None) -> Evidence:
        """Everything that the pictures of one query and one reduction show."""
        cells, low = self._settings.cells, self._settings.scale.range[0]

        def texts(columns: tuple[int, ...], matrix: Floats) -> Labels:
            return cells.labels(self._rows, columns, matrix)

        return Evidence(
            query=query,
            token=self._settings.tokens.texts[query],
            predicted=cells.predicted(query),
            next=cells.next(query),
            rows=self._rows,
            attention=_fill(values, len(self._rows), low),
            texts=texts,
            names=cells.names,
            strip=None if mass is None else Strip(self._settings.scale.strip_label, _below(mass, len(self._rows))),
        )


def _fill(values: Floats, n_row: int, low: float) -> Floats:
    """`values` (layer, key) with the lowest of colours below them, in the row of the final prediction."""
    full: Floats = np.full((n_row, values.shape[1]), low, np.float32)
    full[: len(values)] = values
    return full


def _below(mass: Floats, n_row: int) -> Floats:
    """`mass` (layer) with nothing in the row of the final prediction."""
    full: Floats = np.full(n_row, np.nan, np.float32)
    full[: len(mass)] = mass
    return full
