"""`--map`: pictures of one layer, queries × keys, in blocks of rows and windows of columns."""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from attnlens.render.attention.reduce import Floats
from attnlens.render.attention.source import Source, timeline
from attnlens.render.choice.queries import select_queries
from attnlens.render.choice.windows import n_columns, window_starts, windows
from attnlens.render.options import RenderOptions
from attnlens.render.scene import Scene, Strip, Subject
from attnlens.render.text.numbers import runs
from attnlens.render.views.settings import Settings, select_tokens
from attnlens.schemas.errors import InputError
from attnlens.schemas.ranges import parse_ranges, split_pair

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


class MapView:
    """Attention of one layer from each query (row) to each key (column). A unit is the first query of a block of rows.

    Rows go in blocks of `window` queries one after the other, columns in windows as they do elsewhere, up to the
    block's last query. Keys that come after a query do not exist for it: NaN.

    Raises:
        InputError: an option cannot be used with this capture.
        AbsentError: the capture does not hold what was asked for.
    """

    def __init__(self, capture: Capture, options: RenderOptions) -> None:
        self._options = options
        layer, head = split_pair(options.map or "", option="--map")
        self._layer = parse_ranges(layer, capture.metadata.model.n_layer, option="--map", thing="layer")[0]
        self._tokens = select_tokens(options.tokens, capture)
        if head and options.heads != "max":
            raise InputError(f"--map {options.map} names the head itself: leave --heads {options.heads} out")
        self._settings = Settings(capture, options, heads=head or options.heads, text=options.text or "weight")
        self._prefix = f"map_l{self._layer}" + (f"_h{runs(self._settings.heads[0].heads or ())}" if head else "")
        first = 0 if self._tokens is None else self._tokens[0]
        queries = [query for query in select_queries(options.queries, timeline(capture)) if query >= first]
        if not queries:
            raise InputError(f"--tokens {options.tokens}: all queries come before them, no column is left")
        self._blocks = {
            queries[start]: (number, tuple(queries[start : start + options.window]))
            for number, start in enumerate(range(0, len(queries), options.window))
        }
        self.units = tuple(self._blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the largest picture."""
        last = self._blocks[self.units[-1]][1][-1]
        rows = max(len(queries) for _, queries in self._blocks.values())
        return rows, min(self._options.window, n_columns(last, self._tokens))

    def stems(self, unit: int) -> tuple[str, ...]:
        """Names of a block's pictures, without ending: `map_l{layer}_{block}_{window}`."""
        number, queries = self._blocks[unit]
        count = n_columns(queries[-1], self._tokens)
        n_window = len(window_starts(count, self._options.window, self._options.step))
        return tuple(
            f"{self._prefix}_{number}_{window}{heads.suffix}"
            for heads in self._settings.heads
            for window in range(n_window)
        )

    def scenes(self, unit: int, wanted: Container[str] | None = None) -> Iterator[tuple[str, Scene]]:
        """Those of a block's pictures that are wanted, each with its stem."""
        names, (_, queries) = iter(self.stems(unit)), self._blocks[unit]
        parts = windows(queries[-1], self._options.window, self._options.step, self._tokens)
        found = self._source.rows(queries)
        for place, subject in enumerate(self._settings.subjects):
            matrix: Floats = np.full((len(queries), queries[-1] + 1), np.nan, np.float32)
            masses: Floats = np.full(len(queries), np.nan, np.float32)
            for row, (query, reduced) in enumerate(zip(queries, found, strict=True)):
                values, mass = reduced[place]
                matrix[row, : query + 1] = values[0]
                if mass is not None:
                    masses[row] = mass[0]
            for part in parts:
                name = next(names)
                if wanted is None or name in wanted:
                    yield name, self._scene(subject, queries, part.columns, matrix[:, list(part.columns)], masses)

    @cached_property
    def _source(self) -> Source:
        return self._settings.source((self._layer,))

    def _scene(
        self, subject: Subject, queries: tuple[int, ...], columns: tuple[int, ...], matrix: Floats, masses: Floats
    ) -> Scene:
        style, cells, tokens = self._settings.style, self._settings.cells, self._settings.tokens.texts
        strip_label = self._settings.scale.strip_label
        return Scene(
            subject=subject,
            query=None,
            token="",
            predicted=None,
            next=None,
            rows=queries,
            columns=columns,
            matrix=matrix,
            labels=cells.labels((self._layer,) * len(queries), columns, matrix),
            colormap=style.colormap,
            scale=style.scale,
            kind="map",
            theme=style.theme,
            row_name="query",
            row_labels=tuple(tokens[query] for query in queries),
            column_labels=tuple(tokens[column] for column in columns),
            scale_name=style.scale_name,
            text_name=style.text_name,
            bar=style.bar,
            ticks=style.ticks,
            strip=Strip(strip_label, masses) if strip_label else None,
            headline=f"layer {self._layer}   {subject.reduction}   queries {runs(queries, '–', ', ')}",
            recipe={
                **style.recipe,
                "queries": runs(queries),
                "columns": runs(columns),
                "reduction": subject.reduction,
            },
        )
