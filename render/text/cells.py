"""Texts of one capture's tokens and cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from attnlens.render.choice.queries import Timeline
from attnlens.render.scene import Labels, Prediction
from attnlens.render.text.legible import legible, legible_bytes
from attnlens.render.text.texts import Blocks, Text, Values
from attnlens.schemas.errors import AbsentError, StoreError

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


_KEPT = 64
"""Windows whose texts are remembered: they come again with the next query, whatever it looks at."""

_TEXTS, _BLOCK = 1 << 15, 4096
"""Legible texts that are kept, and tokens whose stored texts are read at a time."""


class Tokens:
    """The timeline of a capture: legible texts (`texts`), ids, and which tokens are special."""

    def __init__(self, capture: Capture) -> None:
        self.ids = np.asarray(capture.token_id)
        self.special = np.asarray(capture.token_special)
        self.texts = TimelineTexts(capture, self.ids, self.special)


class TimelineTexts(Sequence[str]):
    """Legible text of each token of the timeline, made when it is asked for: a picture shows a few of very many."""

    def __init__(self, capture: Capture, ids: npt.NDArray[np.int32], special: npt.NDArray[np.bool_]) -> None:
        self._capture, self._ids, self._special = capture, ids, special
        self._legible = lru_cache(maxsize=_TEXTS)(self._made)
        self._block = lru_cache(maxsize=4)(self._read)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[str]: ...
    def __getitem__(self, position: int | slice) -> str | Sequence[str]:
        if isinstance(position, slice):
            return [self._legible(one) for one in range(len(self))[position]]
        return self._legible(range(len(self))[position])

    def _made(self, position: int) -> str:
        if self._ids[position] < 0:
            return "<redacted>"
        text = self._block(position // _BLOCK)[position % _BLOCK]
        return legible(text) if self._special[position] else legible_bytes(self._capture.token_bytes(position), text)

    def _read(self, number: int) -> list[str]:
        """Texts as they are stored, of one block of tokens."""
        stop = min((number + 1) * _BLOCK, len(self))
        return [str(text) for text in self._capture["token_text"][number * _BLOCK : stop]]


class Cells:
    """What the lens says, as texts of cells and in the title. Blocks of the lens are read when a picture needs them.

    Raises:
        AbsentError: the texts are made from an array that the capture does not have.
    """

    def __init__(
        self, capture: Capture, tokens: Tokens, text: Text, timeline: Timeline, lens: str | None = None
    ) -> None:
        metadata = capture.metadata
        self._tokens, self._text, self._capture = tokens, text, capture
        self._of_lens = lru_cache(maxsize=_KEPT)(self._made_of_lens)
        self._n_layer = metadata.model.n_layer
        self.names_tokens = text.array == "lens_token" and text.ranks == 1
        self._spell = _Texts(capture, tokens)
        self._values: Blocks | None = None
        if text.array is not None and not (metadata.lens is None and self.names_tokens):
            self._values = Blocks(capture.reading(text.array, lens), timeline.n_row, text.ranks)
        self._final: Blocks | None = None
        if metadata.lens is not None:
            last = slice(self._n_layer, self._n_layer + 1)
            self._final = Blocks(capture.reading("lens_token", lens), timeline.n_row, 1, last)
            self._chance = Blocks(capture.reading("lens_probability", lens), timeline.n_row, 1, last)

    def labels(self, depths: tuple[int, ...], columns: tuple[int, ...], matrix: npt.NDArray[np.float32]) -> Labels:
        """Texts (row, column) of cells whose drawn values are `matrix`; row r shows the residual of `depths[r]`."""
        if self._text.array is None:
            return tuple(
                ("",) * len(columns) if depth == self._n_layer else self._text.line(values, self.spell)
                for depth, values in zip(depths, matrix, strict=True)
            )
        return self._of_lens(depths, columns)

    def _made_of_lens(self, depths: tuple[int, ...], columns: tuple[int, ...]) -> Labels:
        values = None if self._values is None else self._values[columns]
        return tuple(self._line(depth, columns, values) for depth in depths)

    def _line(self, depth: int, columns: tuple[int, ...], values: Values | None) -> tuple[str, ...]:
        if depth == 0 and self.names_tokens:
            return tuple(self._tokens.texts[column] for column in columns)
        if values is None:
            return ("",) * len(columns)
        if min(columns) < self._capture.lens_start:
            first, start = self._capture.metadata.lens_first, self._capture.lens_start
            raise AbsentError(
                f"capture {self._capture.id}: the lens did not read token {min(columns)}, it was asked for the tokens "
                f"from {first} on; draw those (--tokens {start}:), or the attention without the lens (--text weight)"
            )
        return self._text.line(values[depth], self.spell)

    def names(self, columns: tuple[int, ...]) -> tuple[str, ...]:
        """The tokens of columns, where no row of the cells shows them."""
        return () if self.names_tokens else tuple(self._tokens.texts[column] for column in columns)

    def spell(self, token: int) -> str:
        """Legible text of a token id."""
        return self._spell[token]

    def predicted(self, query: int) -> Prediction | None:
        """The lens's first choice at the last depth."""
        if self._final is None or query < self._capture.lens_start:
            return None
        token, chance = self._final[(query,)], self._chance[(query,)]
        return Prediction(text=self.spell(int(token[0, 0, 0])), probability=float(chance[0, 0, 0]))

    def next(self, query: int) -> str | None:
        """The token that came next, unless it is the predicted one."""
        if query + 1 >= len(self._tokens.texts):
            return None
        if self._final is not None and self._final[(query,)][0, 0, 0] == self._tokens.ids[query + 1]:
            return None
        return self._tokens.texts[query + 1]


class _Texts(dict[int, str]):
    """Vocabulary id → legible text, each made when it is needed. Ids of the timeline have exact bytes there."""

    def __init__(self, capture: Capture, tokens: Tokens) -> None:
        super().__init__()
        self._capture, self._tokens = capture, tokens
        self._positions = _Places(tokens.ids)
        self._entries = _Places(np.asarray(capture["vocabulary_id"][:] if capture.metadata.lens else [], np.int32))
        self._block = lru_cache(maxsize=8)(self._read)
        self[-1] = ""

    def __missing__(self, token: int) -> str:
        if (position := self._positions.of(token)) is not None:
            text = self._tokens.texts[position]
        else:
            text = legible(self._stored(token))
        self[token] = text
        return text

    def _stored(self, token: int) -> str:
        entry = self._entries.of(token)
        block = [] if entry is None else self._block(entry // _BLOCK)
        if entry is None or entry % _BLOCK >= len(block):
            raise StoreError(
                f"{self._capture.id}/vocabulary_id: the lens arrays use token id {token}, which is not there; "
                "run `lens verify`"
            )
        return block[entry % _BLOCK]

    def _read(self, number: int) -> list[str]:
        return [str(text) for text in self._capture["vocabulary_text"][number * _BLOCK : (number + 1) * _BLOCK]]


class _Places:
    """Where each of some ids stands first."""

    def __init__(self, ids: npt.NDArray[np.int32]) -> None:
        self._ids, self._places = np.unique(ids, return_index=True)

    def of(self, number: int) -> int | None:
        """The place of an id, None where it is not among them."""
        at = int(np.searchsorted(self._ids, number))
        return int(self._places[at]) if at < len(self._ids) and self._ids[at] == number else None
