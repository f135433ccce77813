"""What one capture's pictures need, read from the store: once a capture, and once a query for all its windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlens.render.heads import Heads
from attnlens.render.queries import Timeline
from attnlens.render.scene import Evidence, Prediction, Subject
from attnlens.render.text import legible, legible_bytes

if TYPE_CHECKING:
    from attnlens.store.reader import Capture

_BLOCK = 1024
"""Tokens of a lens array that are read at a time: only rank 0 of them is kept."""


def timeline(capture: Capture) -> Timeline:
    """How far the capture goes."""
    return Timeline(
        capture=capture.id,
        n_prompt=capture.n_prompt,
        n_token=capture.n_token,
        n_row=min(capture.committed, capture.n_fed),
    )


class Source:
    """Evidence for the queries of one capture, for the rows and heads that were asked for."""

    def __init__(self, capture: Capture, *, rows: tuple[int, ...], heads: Heads) -> None:
        self._capture = capture
        self._rows = rows
        self._heads = heads
        metadata = capture.metadata
        self._n_layer = metadata.model.n_layer
        self._ids = np.asarray(capture.token_id)
        special = np.asarray(capture.token_special)
        self._tokens = [self._token(position, bool(special[position])) for position in range(capture.n_token)]
        vocabulary = {} if metadata.lens is None else capture.vocabulary
        self._texts = _Texts(vocabulary, dict(zip(self._ids.tolist(), self._tokens, strict=True)))
        n_row = timeline(capture).n_row
        self._lens: npt.NDArray[np.int32] | None = None
        if metadata.lens is not None:
            self._lens = self._first_choice("lens_token", slice(None), n_row).astype(np.int32)
            final = slice(self._n_layer, self._n_layer + 1)
            self._probability = self._first_choice("lens_probability", final, n_row)[0]
        self.subject = Subject(
            model=metadata.model.id,
            capture=capture.id,
            status=metadata.status,
            n_prompt=capture.n_prompt,
            n_layer=self._n_layer,
            special=frozenset(np.flatnonzero(special).tolist()),
            lens_absent=None if self._lens is not None else metadata.lens_absent or "none was stored",
            reduction=heads.label,
        )

    def evidence(self, query: int) -> Evidence:
        """Everything that the pictures of this query show.

        Raises:
            AbsentError: the store has no attention for this query.
            StoreError: it is damaged.
        """
        return Evidence(
            query=query,
            token=self._tokens[query],
            predicted=self._predicted(query),
            next=self._next(query),
            rows=self._rows,
            attention=self._attention(query),
            labels=tuple(self._labels(row, query + 1) for row in self._rows),
        )

    def _attention(self, query: int) -> npt.NDArray[np.float32]:
        """Reduced attention float32 (row, column), columns 0 … query, 0 in the row of the final prediction."""
        layers = [row for row in self._rows if row < self._n_layer]
        if self._heads.stored is not None:
            weights = self._capture.attention.reduced(self._heads.stored, [query], layers=layers)[:, 0, : query + 1]
        else:
            heads = None if self._heads.heads is None else list(self._heads.heads)
            rows = self._capture.attention.rows([query], layers=layers, heads=heads)
            weights = self._heads.reduce(rows[:, :, 0, : query + 1])
        attention = np.zeros((len(self._rows), query + 1), np.float32)
        attention[: len(layers)] = weights
        return attention

    def _labels(self, row: int, columns: int) -> tuple[str, ...]:
        if row == 0:
            return tuple(self._tokens[:columns])
        if self._lens is None:
            return ("",) * columns
        return tuple(self._texts[token] for token in self._lens[row, :columns].tolist())

    def _predicted(self, query: int) -> Prediction | None:
        if self._lens is None:
            return None
        text = self._texts[int(self._lens[self._n_layer, query])]
        return Prediction(text=text, probability=float(self._probability[query]))

    def _next(self, query: int) -> str | None:
        """The token that came next, unless it is the predicted one."""
        if query + 1 >= len(self._tokens):
            return None
        if self._lens is not None and self._lens[self._n_layer, query] == self._ids[query + 1]:
            return None
        return self._tokens[query + 1]

    def _token(self, position: int, special: bool) -> str:
        if self._ids[position] < 0:
            return "<redacted>"
        text = self._capture.token_text[position]
        return legible(text) if special else legible_bytes(self._capture.token_bytes(position), text)

    def _first_choice(self, name: str, depths: slice, n_row: int) -> npt.NDArray[np.generic]:
        """Rank 0 of a lens array (depth, token) for the tokens that have rows."""
        array = self._capture[name]
        blocks = [
            np.asarray(array[depths, start : min(start + _BLOCK, n_row), 0:1])[..., 0]
            for start in range(0, n_row, _BLOCK)
        ]
        return np.concatenate(blocks, axis=1)


class _Texts(dict[int, str]):
    """Vocabulary id → legible text, each made once. Ids of the timeline have exact bytes and come ready-made."""

    def __init__(self, vocabulary: Mapping[int, str], known: dict[int, str]) -> None:
        super().__init__(known)
        self._vocabulary = vocabulary
        self[-1] = ""

    def __missing__(self, token: int) -> str:
        text = self[token] = legible(self._vocabulary[token])
        return text
