"""Texts of one capture's tokens and cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlens.render.choice.queries import Timeline
from attnlens.render.scene import Labels, Prediction
from attnlens.render.text.legible import legible, legible_bytes
from attnlens.render.text.texts import LensBlocks, Text
from attnlens.schemas.errors import StoreError

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


class Tokens:
    """Legible texts of the timeline (`texts`), their ids and which of them are special."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.ids = np.asarray(capture.token_id)
        self.special = np.asarray(capture.token_special)
        self.texts = [self._text(position) for position in range(capture.n_token)]

    def _text(self, position: int) -> str:
        if self.ids[position] < 0:
            return "<redacted>"
        text = self._capture.token_text[position]
        return legible(text) if self.special[position] else legible_bytes(self._capture.token_bytes(position), text)


class Cells:
    """What the lens says, as texts of cells and in the title.

    Raises:
        AbsentError: the texts are made from an array that the capture does not have.
    """

    def __init__(
        self, capture: Capture, tokens: Tokens, text: Text, timeline: Timeline, lens: str | None = None
    ) -> None:
        metadata = capture.metadata
        self._tokens, self._text = tokens, text
        self._n_layer = metadata.model.n_layer
        self.names_tokens = text.array == "lens_token" and text.ranks == 1
        vocabulary = {} if metadata.lens is None else capture.vocabulary
        self._spell = _Texts(vocabulary, dict(zip(tokens.ids.tolist(), tokens.texts, strict=True)))
        self._values: LensBlocks | None = None
        if text.array is not None and not (metadata.lens is None and self.names_tokens):
            self._values = LensBlocks(capture.reading(text.array, lens), timeline.n_row, text.ranks)
        self._final: LensBlocks | None = None
        if metadata.lens is not None:
            self._final = LensBlocks(capture.reading("lens_token", lens), timeline.n_row, 1)
            self._chance = LensBlocks(capture.reading("lens_probability", lens), timeline.n_row, 1)
            if self.names_tokens and self._values is not None:
                self._final = self._values  # the same cells, read once

    def labels(self, depths: tuple[int, ...], columns: tuple[int, ...], matrix: npt.NDArray[np.float32]) -> Labels:
        """Texts (row, column) of cells whose drawn values are `matrix`; row r shows the residual of `depths[r]`."""
        if self._text.array is None:
            return tuple(
                ("",) * len(columns) if depth == self._n_layer else self._text.line(values, self.spell)
                for depth, values in zip(depths, matrix, strict=True)
            )
        return tuple(self._line(depth, columns) for depth in depths)

    def _line(self, depth: int, columns: tuple[int, ...]) -> tuple[str, ...]:
        if depth == 0 and self.names_tokens:
            return tuple(self._tokens.texts[column] for column in columns)
        if self._values is None:
            return ("",) * len(columns)
        return self._text.line(self._values.take(depth, columns), self.spell)

    def names(self, columns: tuple[int, ...]) -> tuple[str, ...]:
        """The tokens of columns, where no row of the cells shows them."""
        return () if self.names_tokens else tuple(self._tokens.texts[column] for column in columns)

    def spell(self, token: int) -> str:
        """Legible text of a token id."""
        return self._spell[token]

    def predicted(self, query: int) -> Prediction | None:
        """The lens's first choice at the last depth."""
        if self._final is None:
            return None
        chance = self._chance.take(self._n_layer, (query,))[0, 0]
        return Prediction(text=self.spell(self._first(query)), probability=float(chance))

    def next(self, query: int) -> str | None:
        """The token that came next, unless it is the predicted one."""
        if query + 1 >= len(self._tokens.texts):
            return None
        if self._final is not None and self._first(query) == self._tokens.ids[query + 1]:
            return None
        return self._tokens.texts[query + 1]

    def _first(self, query: int) -> int:
        assert self._final is not None
        return int(self._final.take(self._n_layer, (query,))[0, 0])


class _Texts(dict[int, str]):
    """Vocabulary id → legible text, each made once. Ids of the timeline have exact bytes and come ready-made."""

    def __init__(self, vocabulary: Mapping[int, str], known: dict[int, str]) -> None:
        super().__init__(known)
        self._vocabulary = vocabulary
        self[-1] = ""

    def __missing__(self, token: int) -> str:
        if token not in self._vocabulary:
            raise StoreError(f"the lens says token {token}, which vocabulary_id does not list; run `lens verify`")
        text = self[token] = legible(self._vocabulary[token])
        return text
