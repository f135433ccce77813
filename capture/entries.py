"""The vocabulary of a store grows by what its arrays use: each id is sent once, before the rows that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.capture.vocabulary import Vocabulary


class VocabularyEntries:
    """Sends entries that were not sent yet. `send` takes ids and their texts; `known` are there already."""

    def __init__(
        self, send: Callable[[list[int], list[str]], None], vocabulary: Vocabulary, known: Iterable[int] = ()
    ) -> None:
        self._send = send
        self._vocabulary = vocabulary
        self._known = np.zeros(len(vocabulary), dtype=bool)
        self._known[list(known)] = True

    def use(self, tokens: NDArray[Any]) -> None:
        """Rows that are about to be sent use these ids (lane, token, …); entered token by token, -1 left out."""
        by_token = np.moveaxis(tokens, 1, 0)
        used, first = np.unique(by_token, return_index=True)
        order = np.lexsort((used, first // max(1, by_token[0].size)))
        used = used[order]
        used = used[used >= 0]
        new = used[~self._known[used]]
        if len(new):
            self._known[new] = True
            ids = [int(token) for token in new]
            self._send(ids, [self._vocabulary.text(token) for token in ids])
