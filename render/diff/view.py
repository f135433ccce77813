"""The pictures of a comparison: B's attention less A's, and what the lenses say where they differ."""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from attnlens.render.attention.reduce import Floats
from attnlens.render.attention.source import Merge, Source, timeline
from attnlens.render.choice.layers import select_rows
from attnlens.render.choice.queries import select_queries, stem
from attnlens.render.choice.windows import check_window, window_starts, windows
from attnlens.render.diff.align import Pair
from attnlens.render.diff.comparison import Comparison
from attnlens.render.options import RenderOptions
from attnlens.render.recipes.recipe import of_run
from attnlens.render.scene import Labels, Scene
from attnlens.render.text.numbers import runs
from attnlens.render.views.settings import Settings
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.naming import tell_apart, told

if TYPE_CHECKING:
    from attnlens.store.reader import Capture

ARROW = " → "
_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)


class DiffView:
    """Pictures of aligned queries; a unit is the number of a pair in `Comparison.drawn`.

    Row r is layer r of A beside its partner in B, columns are the aligned pieces of text up to the query.

    `n_alone` counts the queries that were asked for and have no partner in B.

    Raises:
        InputError: an option cannot be used with one of the captures.
        AbsentError: one of them does not hold what was asked for.
    """

    def __init__(self, comparison: Comparison, options: RenderOptions, limit: float = 1.0) -> None:
        check_window(options.window, options.step)
        self.limit = limit
        self._both, self._options = comparison, options
        self._rows = select_rows(options.layers, comparison.layers[0])
        self._partners = tuple(comparison.layer(row) for row in self._rows)
        captures = comparison.a, comparison.b
        for capture in captures:
            if capture.metadata.attention is None:
                why = capture.metadata.attention_absent or "none was stored"
                raise AbsentError(f"capture {capture.id} holds no attention: {why}")
        name = options.text or "token"
        self._settings = tuple(Settings(capture, options, heads=options.heads, text=name) for capture in captures)
        counts = [len(settings.heads) for settings in self._settings]
        if counts[0] != counts[1]:
            raise InputError(f"--heads {options.heads}: the captures have {counts[0]} and {counts[1]} heads, name some")
        wanted = set(select_queries(options.queries, timeline(comparison.a)))
        self.units = tuple(unit for unit, pair in enumerate(comparison.drawn) if pair.last[0] in wanted)
        self.n_alone = len(wanted) - len(self.units)
        if not self.units:
            raise AbsentError(
                f"no query of capture {comparison.a.id} among --queries {options.queries} has a partner in capture "
                f"{comparison.b.id}; {len(comparison.drawn)} others have, try --queries all"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of A that are drawn."""
        return tuple(row for row in self._rows if row < self._both.layers[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the largest picture."""
        return len(self._rows), min(self._options.window, self.units[-1] + 1)

    def stems(self, unit: int) -> tuple[str, ...]:
        """Names of a query's pictures, without ending: those of A's pictures, with `diff` for `attn`."""
        name = stem(self._both.drawn[unit].last[0], self._both.a.n_prompt).replace("attn", "diff", 1)
        count = len(window_starts(unit + 1, self._options.window, self._options.step))
        suffixes = [""] if count == 1 else [f"_{number}" for number in range(count)]
        return tuple(f"{name}{suffix}{heads.suffix}" for heads in self._settings[0].heads for suffix in suffixes)

    def differences(self, unit: int) -> list[Floats]:
        """What is drawn, for each reduction float32 (layer, column): B's value less A's for the pairs 0 … unit."""
        values: list[list[Floats]] = []
        for side, source in enumerate(self._sources):
            found = [one for one, _ in source.rows([self._both.drawn[unit].last[side]])[0]]
            if not self._merged:
                keys = [_side(pair, side)[0] for pair in self._both.drawn[: unit + 1]]
                found = [one[:, keys] for one in found]
            values.append(found)
        return [theirs - ours for ours, theirs in zip(*values, strict=True)]

    def scenes(self, unit: int, wanted: Container[str] | None = None) -> Iterator[tuple[str, Scene]]:
        """Those of a query's pictures that are wanted, each with its stem."""
        names = iter(self.stems(unit))
        for place, values in enumerate(self.differences(unit)):
            matrix: Floats = np.zeros((len(self._rows), unit + 1), np.float32)
            matrix[: len(self.layers)] = values
            for part in windows(unit, self._options.window, self._options.step):
                name = next(names)
                if wanted is None or name in wanted:
                    columns = slice(part.columns[0], part.columns[-1] + 1)
                    yield name, self._scene(unit, place, self._both.drawn[columns], matrix[:, columns])

    @cached_property
    def _merged(self) -> bool:
        return any(len(pair.a) > 1 or len(pair.b) > 1 for pair in self._both.drawn)

    @cached_property
    def _sources(self) -> tuple[Source, ...]:
        layers = self.layers, tuple(self._both.layer(layer) for layer in self.layers)
        return tuple(
            settings.source(layers[side], _merge(self._both.drawn, side) if self._merged else None)
            for side, settings in enumerate(self._settings)
        )

    def _scene(self, unit: int, place: int, pairs: tuple[Pair, ...], matrix: Floats) -> Scene:
        a = self._settings[0]
        pair, style = self._both.drawn[unit], a.style
        same = all(one.a == one.b and len(one.a) == 1 for one in self._both.pairs)
        other = self._both.layers[0] != self._both.layers[1]
        return Scene(
            subject=a.subjects[place],
            query=pair.last[0],
            token=a.tokens.texts[pair.last[0]],
            predicted=a.cells.predicted(pair.last[0]),
            next=None,
            rows=self._rows,
            columns=tuple(one.last[0] for one in pairs),
            matrix=matrix,
            labels=self._labels(pairs, matrix),
            colormap=style.colormap,
            scale=(-self.limit, self.limit),
            kind="diff",
            theme=style.theme,
            row_labels=tuple(f"B {partner}" for partner in self._partners) if other else (),
            column_labels=() if same else tuple(f"B {runs(one.b)}" for one in pairs),
            scale_name=f"-{self.limit:g} … {self.limit:g}, difference of: {style.scale_name}",
            text_name=f"{style.text_name}, A{ARROW}B where they differ",
            bar="B - A",
            ticks=tuple((part * self.limit, f"{part * self.limit:+.3g}" if part else "0") for part in _TICKS),
            headline=self._headline(pair),
            details=self._details(place, pairs),
            recipe=self._recipe(pair, pairs),
        )

    def _labels(self, pairs: tuple[Pair, ...], matrix: Floats) -> Labels:
        a, b = self._settings
        if a.text.array is None:
            return tuple(
                tuple("" if value != value else f"{value:+.2f}" for value in row)
                if depth < self._both.layers[0]
                else ("",) * len(pairs)
                for depth, row in zip(self._rows, matrix.tolist(), strict=True)
            )
        ours = a.cells.labels(self._rows, tuple(pair.last[0] for pair in pairs), matrix)
        theirs = b.cells.labels(self._partners, tuple(pair.last[1] for pair in pairs), matrix)
        known = not self._both.lens_absent
        return tuple(
            tuple(
                left if left == right else f"{left}{ARROW}{right}" if known or depth == 0 else ""
                for left, right in zip(*row, strict=True)
            )
            for depth, row in zip(self._rows, zip(ours, theirs, strict=True), strict=True)
        )

    def _headline(self, pair: Pair) -> str:
        place, settings = pair.last[0] - self._both.a.n_prompt, self._settings[0]
        parts = [
            f"token {pair.last[0]} “{settings.tokens.texts[pair.last[0]]}” "
            + (f"(generated {place})" if place >= 0 else "(prompt)")
        ]
        for name, one, query in zip("AB", self._settings, pair.last, strict=True):
            if (said := one.cells.predicted(query)) is not None:
                parts.append(f"{name} predicts “{said.text}” ({said.probability:.3f})")
        return "   ".join(parts)

    def _details(self, place: int, pairs: tuple[Pair, ...]) -> tuple[str, ...]:
        a, b = (one.subjects[place].reduction for one in self._settings)
        names = tell_apart(self._both.a.metadata, self._both.b.metadata)
        lines = [
            *map(_about, "AB", (self._both.a, self._both.b), names),
            f"attention, B - A: {a}" + ("" if a == b else f" in A, {b} in B"),
            f"tokens {runs([one.last[0] for one in pairs], '–', ', ')} of A, aligned by {self._both.align}",
        ]
        if self._both.layers[0] != self._both.layers[1]:
            lines.append("layers of A ({}) and B ({}) paired by relative depth".format(*self._both.layers))
        if self._both.lens_absent:
            lines.append(f"no lens: {self._both.lens_absent}")
        return tuple(lines)

    def _recipe(self, pair: Pair, pairs: tuple[Pair, ...]) -> dict[str, object]:
        return {**self.recipe(), "query": pair.last[0], "columns": runs([one.last[0] for one in pairs])}

    def recipe(self) -> dict[str, object]:
        """What all pictures have in their recipe; each adds its own query and columns."""
        other = of_run(self._both.b, self._options)
        return {
            **self._settings[0].style.recipe,
            "diff": {
                "store": other["store"],
                "capture": other["capture"],
                "model": other["model"],
                **told(self._both.b.metadata),
                "align": self._both.align,
                "limit": self.limit,
            },
        }


def _about(side: str, capture: Capture, name: str) -> str:
    model = capture.metadata.model
    weights = model.dtype if model.quantization is None else f"{model.dtype}, quantized"
    weights = f" ({weights})" if name == model.id else f", {weights}"
    state = "" if capture.status == "complete" else f" ({capture.status})"
    return f"{side}: {name}{weights}, capture {capture.id}{state}"


def _side(pair: Pair, side: int) -> tuple[int, ...]:
    return pair.b if side else pair.a


def _merge(pairs: tuple[Pair, ...], side: int) -> Merge:
    """Attention to pieces of text: the sum over their tokens."""
    pieces = [_side(pair, side) for pair in pairs]
    count = {piece[-1]: number + 1 for number, piece in enumerate(pieces)}

    def merge(weights: Floats, query: int) -> Floats:
        parts = [weights[:, :, list(piece)].sum(axis=2) for piece in pieces[: count[query]]]
        return np.stack(parts, axis=2)

    return merge
