"""Attention rows from stored queries and keys: what the model's kernel did, repeated in float32 on the processor.

The formula is in docs/format.md, *Queries and keys*. Keys are read slab by slab, several side by side, and never held
all at once; those that were read last are kept up to a bound, because the next picture needs them again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import AbsentError, AttnlensError, StoreError
from attnlens.schemas.metadata import LayerInfo
from attnlens.store.bfloat16 import BFLOAT16

if TYPE_CHECKING:
    from attnlens.store.reader import Capture

Floats = NDArray[np.float32]
Item = TypeVar("Item")

KEPT_BYTES = 128 << 20
"""Keys, in float32, that stay in memory for the next row."""
PART_BYTES = 1 << 20
"""Scores that are made into weights at a time, so that they stay in the processor's cache."""
BLOCK_BYTES = 32 << 20
"""Weights of all heads that are held at a time where only their reduction is wanted."""


def first_visible(info: LayerInfo, query: NDArray[np.intp]) -> NDArray[np.intp]:
    """The first key that each query sees in a layer; the last is the query itself."""
    if info.kind == "sliding" and info.window is not None:
        return np.maximum(0, query - info.window + 1)
    if info.kind == "chunked" and info.window is not None:
        return query // info.window * info.window
    return np.zeros_like(query)


def score(query: Floats, key: Floats, heads: Sequence[int], group: int, into: Floats) -> None:
    """Products of queries and keys, as they are: no scale, no mask.

    Args:
        query: (head, query, feature), the heads listed in `heads`.
        key: (key, kv_head, feature).
        heads: numbers of the heads.
        group: heads that share a head of keys.
        into: (head, query, key), is overwritten.
    """
    for number in range(key.shape[1]):
        places = [place for place, head in enumerate(heads) if head // group == number]
        if places:
            into[places] = query[places] @ key[:, number].T


def weigh(scores: Floats, info: LayerInfo, heads: Sequence[int], queries: NDArray[np.intp], first_key: int) -> None:
    """Make weights of `scores` (head, query, key), in place; columns begin at key `first_key`.

    Heads are those of a layer that are listed in `heads`, queries the positions in `queries`.
    """
    scores *= np.float32(1.0 if info.scaling is None else info.scaling)
    if info.softcap is not None:
        cap = np.float32(info.softcap)
        scores /= cap
        np.tanh(scores, out=scores)
        scores *= cap
    key = np.arange(first_key, first_key + scores.shape[2])
    hidden = (key > queries[:, None]) | (key < first_visible(info, queries)[:, None])
    if hidden.any():
        np.copyto(scores, np.float32(-np.inf), where=hidden)
    highest = scores.max(axis=-1, keepdims=True)
    sinks: Floats | None = None
    if info.sink_values is not None:
        sinks = np.asarray(info.sink_values, np.float32)[list(heads)][:, None, None]
        highest = np.maximum(highest, sinks)
    scores -= highest
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks - highest)
    scores /= total


class Replay:
    """Attention of one capture in qk mode, made from its queries and keys."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._layers = capture.metadata.model.layers
        self._keys = _Keys(capture)

    def rows(self, queries: NDArray[np.intp], layers: NDArray[np.intp], heads: NDArray[np.intp]) -> Floats:
        """Attention (layer, head, query, key), keys 0 … n_token - 1; layers without attention are NaN.

        Raises:
            AbsentError: a query is not committed, or a redaction took keys away that it needs.
            StoreError: a chunk is damaged, or the numbers are none that attention can be made of.
        """
        stop = int(queries.max()) + 1
        found = np.zeros((len(layers), len(heads), len(queries), self._capture.n_token), np.float32)
        query = self._queries(queries, layers, heads)
        infos = [self._layers[layer] for layer in layers]
        begin = [int(first_visible(info, queries).min()) for info in infos]
        chosen = [int(head) for head in heads]

        def products(slab: tuple[int, int]) -> None:
            """Scores of the keys of one slab, in every layer that sees some of them."""
            here = [place for place, info in enumerate(infos) if info.kind != "none" and begin[place] < slab[1]]
            sources = [_source(infos[place]) for place in here]
            for place, key in zip(here, self._keys.read(slab, sources), strict=True):
                low, high = max(slab[0], begin[place]), min(slab[1], stop)
                group = infos[place].n_head // infos[place].n_kv_head
                with np.errstate(all="ignore"):
                    score(
                        query[place], key[low - slab[0] : high - slab[0]], chosen, group, found[place, :, :, low:high]
                    )

        def weights(part: tuple[int, slice, slice]) -> None:
            """Softmax of some rows of one layer."""
            place, some, part_of = part
            if infos[place].kind == "none":
                found[place, some] = np.nan
                return
            scores = found[place, some, part_of, begin[place] : stop]
            with np.errstate(all="ignore"):
                weigh(scores, infos[place], chosen[some], queries[part_of], begin[place])
            if not np.isfinite(scores.sum()):
                raise self._no_weights(infos[place].index, int(queries[part_of].max()))

        _side_by_side(products, self._keys.slabs(min(begin), stop))
        _side_by_side(weights, _parts(found.shape, 4 * stop))
        return found

    def _no_weights(self, layer: int, query: int) -> AttnlensError:
        """The error of rows, up to `query`, that are not finite."""
        crop = self._capture.metadata.crop
        if crop is not None and crop.redacted and query >= crop.redacted[0][0]:
            first = crop.redacted[0][0]
            return AbsentError(
                f"capture {self._capture.id}: layer {layer} has no attention from token {first} on: it is made of "
                "queries and keys, and those of redacted tokens are gone in the lower layers"
            )
        return StoreError(
            f"{self._capture.id}/attention_q, layer {layer}: queries and keys give no finite weights; run `lens verify`"
        )

    def blocks(
        self, queries: NDArray[np.intp], layers: NDArray[np.intp]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], Floats]]:
        """Rows of all heads in blocks that fit memory: (places of layers, places of queries, weights as `rows`)."""
        n_head, n_token = self._capture.metadata.model.n_head, self._capture.n_token
        row = 4 * n_head * n_token
        n_query = max(1, min(len(queries), BLOCK_BYTES // row))
        n_layer = max(1, BLOCK_BYTES // (row * n_query))
        for low in range(0, len(layers), n_layer):
            lanes = np.arange(low, min(low + n_layer, len(layers)))
            for first in range(0, len(queries), n_query):
                some = np.arange(first, min(first + n_query, len(queries)))
                yield lanes, some, self.rows(queries[some], layers[lanes], np.arange(n_head))

    def _queries(self, queries: NDArray[np.intp], layers: NDArray[np.intp], heads: NDArray[np.intp]) -> Floats:
        """Stored queries (layer, head, query, feature)."""
        values = self._capture["attention_q"][queries, layers][:, :, heads]
        return np.ascontiguousarray(values.transpose(1, 2, 0, 3), np.float32)


class _Keys:
    """The keys of a capture, in slabs of tokens as long as a file, float32 (key, kv_head, feature) for each layer."""

    def __init__(self, capture: Capture) -> None:
        from attnlens.store.packing import packing_of
        from attnlens.store.places.zarr_store import PlaceStore

        self._array = capture["attention_k"]
        self._step = self._array.files[0]
        self._lanes = self._array.chunks[1]
        store = self._array.zarr.store_path.store
        self._place = store.place if isinstance(store, PlaceStore) else None
        # Only near files are read whole, and only where one holds all heads and features of its layers.
        sizes = zip(self._array.files[1:], self._array.shape[1:], strict=True)
        whole = all(file >= size for file, size in sizes) and self._array.chunks[2:] == self._array.shape[2:]
        direct = (
            whole and packing_of(self._array.zarr) is not None and self._place is not None and not self._place.blocking
        )
        self._read = self._direct if direct else self._by_zarr
        self._committed = capture.committed
        self._kept: dict[tuple[int, int], tuple[int, Floats]] = {}
        self._size = 0
        self._call = 0
        self._lock = threading.Lock()

    def slabs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(first token, end) of the slabs that hold tokens start … stop - 1; the end may lie beyond `stop`."""
        self._call += 1
        firsts = range(start - start % self._step, stop, self._step)
        return [(first, min(first + self._step, self._committed)) for first in firsts]

    def read(self, slab: tuple[int, int], layers: Sequence[int]) -> list[Floats]:
        """Keys of the tokens of one slab in some layers."""
        lanes = sorted({layer // self._lanes for layer in layers})
        found: dict[int, Floats] = {}
        with self._lock:
            for lane in lanes:
                if (slab[0], lane) in self._kept:
                    found[lane] = self._kept[slab[0], lane][1]
                    self._kept[slab[0], lane] = (self._call, found[lane])
        for run in _runs([lane for lane in lanes if lane not in found]):
            for lane, values in zip(run, self._read(slab, run), strict=True):
                found[lane] = values
                self._keep((slab[0], lane), values)
        return [found[layer // self._lanes][:, layer % self._lanes] for layer in layers]

    def _by_zarr(self, slab: tuple[int, int], run: Sequence[int]) -> list[Floats]:
        """Keys of neighbouring groups of layers, by the reader of all arrays."""
        first, last = run[0] * self._lanes, min((run[-1] + 1) * self._lanes, self._array.shape[1])
        values = self._array[slab[0] : slab[1], first:last]
        cuts = range(0, last - first, self._lanes)
        return [np.ascontiguousarray(values[:, start : start + self._lanes], np.float32) for start in cuts]

    def _direct(self, slab: tuple[int, int], run: Sequence[int]) -> list[Floats]:
        """The same, straight from the file."""
        from attnlens.store.faults import DECODE_ERRORS, damaged
        from attnlens.store.shard_chunks import read_chunks

        assert self._place is not None
        array, shard = self._array.zarr, (slab[0] // self._step, 0, 0, 0)
        rows = range(-(-(slab[1] - slab[0]) // array.chunks[0]))
        try:
            chunks = read_chunks(array, self._place, shard, [(row, lane, 0, 0) for lane in run for row in rows])
        except DECODE_ERRORS as error:
            raise damaged(array.path, array.metadata.encode_chunk_key(shard), error) from error
        found, bits = [], self._array.kind == BFLOAT16
        for place in range(len(run)):
            values = np.empty((slab[1] - slab[0], *array.chunks[1:]), np.float32)
            parts = np.split(values, range(array.chunks[0], len(values), array.chunks[0]))
            for part, chunk in zip(parts, chunks[place * len(rows) : (place + 1) * len(rows)], strict=True):
                part[:] = (self._array.from_bits(chunk) if bits else chunk)[: len(part)]
            found.append(values)
        return found

    def _keep(self, name: tuple[int, int], values: Floats) -> None:
        """Keep what fits; room is made only of what the call before this one did not use either.

        So a row that needs more than fits finds the same part of it kept each time, instead of none of it.
        """
        with self._lock:
            if self._size + values.nbytes > KEPT_BYTES:
                for old in [key for key, (call, _) in self._kept.items() if call < self._call - 1]:
                    self._size -= self._kept.pop(old)[1].nbytes
            if name not in self._kept and self._size + values.nbytes <= KEPT_BYTES:
                self._kept[name] = (self._call, values)
                self._size += values.nbytes


def _source(info: LayerInfo) -> int:
    return info.index if info.key_source is None else info.key_source


def _parts(shape: tuple[int, ...], row: int) -> list[tuple[int, slice, slice]]:
    """(layer, heads, queries) of blocks (layer, head, query, key), so that each is about PART_BYTES of rows."""
    n_layer, n_head, n_query = shape[:3]
    high = max(1, min(n_query, PART_BYTES // row))
    wide = max(1, PART_BYTES // (row * high))
    return [
        (layer, slice(head, head + wide), slice(first, first + high))
        for layer in range(n_layer)
        for head in range(0, n_head, wide)
        for first in range(0, n_query, high)
    ]


def _runs(numbers: list[int]) -> list[list[int]]:
    """Neighbours together."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _side_by_side(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Run `work` for each item, on several threads: numpy and the codecs let each other run."""
    for _ in _pool().map(work, items):
        pass


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), "attnlens-replay")


__all__ = ["Replay", "first_visible", "score", "weigh"]
