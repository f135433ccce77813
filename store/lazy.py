"""Arrays of a capture as xarray wants them: read when a cell is asked for, in any order, absent rows as fill values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray.backends.common import BackendArray
from xarray.core.indexing import ExplicitIndexer, IndexingSupport, VectorizedIndexer, explicit_indexing_adapter

from attnlens.schemas.errors import StoreError
from attnlens.store.named import ROW_AXES
from attnlens.store.places import absolute
from attnlens.store.reader import Capture, open_store

Positions = tuple[NDArray[np.intp], ...]

NEAR = 32
"""Rows that are this close are read as one region: what lenses read lies 32 tokens to a chunk."""
BLOCK_BYTES = 64 << 20
"""Replayed rows that are held at a time, all their keys with them."""
FLOAT32 = frozenset({"float16", "bfloat16"})
"""Stored dtypes whose numbers are handed out as float32, exactly, so that sums over them are not rounded to 16 bits."""


class LazyArray(BackendArray):
    """One stored array. Rows that were not committed, or cropped away, are fill values: NaN, -1."""

    def __init__(self, capture: Capture, name: str) -> None:
        self.name = name
        self.axes = capture[name].axes
        self.shape = capture[name].shape
        stored = capture[name].kind
        self.dtype = np.dtype(object if stored == "string" else "float32" if stored in FLOAT32 else stored)
        self._capture = capture

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        if not isinstance(key, VectorizedIndexer):  # xarray's own way fails on an empty slice that goes backwards
            return self._cells(key.tuple)
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._cells)

    def __reduce__(self) -> tuple[Callable[..., LazyArray], tuple[Any, ...]]:
        about = self._capture
        return _opened_again, (type(self), absolute(about.place.name), about.id, self.name, _state(about))

    @property
    def files(self) -> tuple[int, ...]:
        """Shape of what is best read together: a file."""
        return self._capture[self.name].files

    def _cells(self, key: tuple[int | slice | NDArray[np.intp], ...]) -> NDArray[Any]:
        """Cells by a number, a slice or positions for each axis; a number removes its axis."""
        places = tuple(np.atleast_1d(np.arange(size)[part]) for part, size in zip(key, self.shape, strict=True))
        counts = tuple(map(len, places))
        values = np.empty(counts, self.dtype) if 0 in counts else self._read(places)
        kept = [count for part, count in zip(key, counts, strict=True) if isinstance(part, slice) or np.ndim(part)]
        return values.astype(self.dtype, copy=False).reshape(kept)

    def _read(self, places: Positions) -> NDArray[Any]:
        array = self._capture[self.name]
        row = next((self.axes.index(axis) for axis in ROW_AXES if axis in self.axes), None)
        if row is None:
            return array.filled(places)
        rows, back = np.unique(places[row], return_inverse=True)
        parts = []
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > NEAR) + 1):  # slices, in which absent rows are masked
            region = slice(int(run[0]), int(run[-1]) + 1)
            values = array.filled((*places[:row], region, *places[row + 1 :]))
            parts.append(values.take(run - region.start, axis=row))
        return np.concatenate(parts, axis=row).take(back, axis=row)


class ReplayedWeights(LazyArray):
    """`attention_weight` (layer, head, query, key) of a capture of queries and keys: rows made when asked for."""

    def __init__(self, capture: Capture, name: str = "attention_weight") -> None:
        self.name = name
        self.axes = ("layer", "head", "query", "key")
        self.shape = tuple(capture.shape_of(axis)[0] for axis in self.axes)
        self.dtype = np.dtype(np.float32)
        self._capture = capture

    @property
    def files(self) -> tuple[int, ...]:
        """Shape of what is best made together: rows of all layers, which share the reading of keys."""
        layer, head, query, key = self.shape
        return layer, head, max(1, min(query, BLOCK_BYTES // (4 * layer * head * key))), key

    def _read(self, places: Positions) -> NDArray[Any]:
        found = np.full(tuple(map(len, places)), np.nan, np.float32)
        key = places[3]
        layer, head, query = (self._known(axis, part) for axis, part in zip(self.axes[:3], places[:3], strict=True))
        if len(layer) and len(head):
            step = max(1, BLOCK_BYTES // (4 * len(layer) * len(head) * self.shape[3]))
            for block in np.split(query, range(step, len(query), step))[: len(query)]:
                rows = self._capture.attention.rows(places[2][block], places[0][layer], places[1][head])
                found[np.ix_(layer, head, block)] = rows[..., key]
        return found

    def _known(self, axis: str, part: NDArray[np.intp]) -> NDArray[np.intp]:
        """Which of some positions along an axis there are: committed, not cropped away, of layers with attention."""
        there = np.ones(self.shape[self.axes.index(axis)], np.bool_)
        there &= self._capture.kept.get(axis, True)
        if axis == "layer":
            there &= self._capture.attention_layers
        if axis == "query":
            there[self._capture.committed :] = False
        return np.flatnonzero(there[part])


def _state(capture: Capture) -> tuple[Any, ...]:
    return capture.metadata.digest, capture.committed, capture.n_token


def _opened_again(kind: type[LazyArray], where: str, capture: str, name: str, state: tuple[Any, ...]) -> LazyArray:
    """An array that another process sent, from the same store.

    Raises:
        StoreError: the capture is not what it was.
    """
    found = open_store(where)[capture]
    if _state(found) != state:
        raise StoreError(f"{where}: capture {capture} has changed since it was opened; open it again")
    return kind(found, name)
