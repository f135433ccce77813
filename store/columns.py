"""One-dimensional arrays that grow at their end: the timeline's tokens, their bytes, the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from attnlens.store.encode import encode_numbers, encode_texts
from attnlens.store.files import clean_text, write_atomic

GROWTH = 2


class Column:
    """Values wait in memory until `flush`; the array on disk is made longer when they do not fit."""

    def __init__(self, array: zarr.Array[Any], root: Path, wrote: Callable[[int], None]) -> None:
        self._array = array
        self._folder = root / array.path
        self._wrote = wrote
        self._base = 0
        self._values: list[Any] = []
        self._written = 0

    def __len__(self) -> int:
        return self._base + len(self._values)

    def extend(self, values: Sequence[Any]) -> None:
        """Append `values`."""
        self._values.extend(values)

    def flush(self) -> None:
        """Write the chunks that have changed. The last one is written again when more values come."""
        stop, size = len(self), self._array.chunks[0]
        if stop == self._written:
            return
        if stop > self._array.shape[0]:
            self._array.resize((max(stop, GROWTH * self._array.shape[0]),))
        for first in range(0, len(self._values), size):
            part = self._values[first : first + size]
            path = self._folder / self._array.metadata.encode_chunk_key(((self._base + first) // size,))
            data = self._encode(part, size)
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, data)
            self._wrote(len(data))
        full = len(self._values) - len(self._values) % size
        del self._values[:full]
        self._base += full
        self._written = stop

    def cut(self) -> None:
        """Give the array exactly the length of what was written."""
        self.flush()
        self._array.resize((self._written,))

    def _encode(self, values: list[Any], size: int) -> bytes:
        chunk = np.full(size, self._array.fill_value, self._array.dtype)
        chunk[: len(values)] = values
        return encode_numbers(chunk)


class TextColumn(Column):
    """A column of strings; what UTF-8 cannot hold is replaced."""

    def extend(self, values: Sequence[Any]) -> None:
        """Append `values`."""
        super().extend([clean_text(text) for text in values])

    def _encode(self, values: list[Any], size: int) -> bytes:
        return encode_texts([*values, *[""] * (size - len(values))])
