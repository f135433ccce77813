"""Several processes write one capture together, each the attention of its own heads.

The first process creates the capture and writes everything else. The others write their part of `attention_weight` and
leave a mark of how far they are; the first commits a row when all have written it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.schemas.errors import StoreError
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store.create import CountingStore
from attnlens.store.files import PARTIAL, write_atomic
from attnlens.store.planned import planned_arrays
from attnlens.store.shards import ShardedRows
from attnlens.store.sinks import AttentionSink

PATIENCE_SECONDS = 600.0
"""How long the other processes may write nothing before the first one gives up on them."""
RETRY_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class HeadShare:
    """The heads of process number `rank` of `count`, which hold one model together."""

    rank: int
    count: int

    def heads(self, n_head: int) -> slice:
        """Which of all heads are this process's."""
        each = n_head // self.count
        return slice(self.rank * each, (self.rank + 1) * each)


class HeadRows(ShardedRows):
    """The part of `attention_weight` that belongs to some heads; heads are counted from the first of them."""

    def __init__(self, array: zarr.Array[Any], root: Path, heads: slice, wrote: Callable[[int], None]) -> None:
        super().__init__(array, root, 2, keep_tail=False, wrote=wrote)
        self._heads = heads

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        layer, _, query, key = self._array.shape
        return layer, self._heads.stop - self._heads.start, query, key

    def write(self, start: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write a region that begins at `start` of the part."""
        super().write((start[0], start[1] + self._heads.start, *start[2:]), values)


class HeadsFile:
    """What a process that is not the first writes of a capture. It is handed everything, and keeps its heads."""

    def __init__(
        self, root: Path, metadata: CaptureMetadata, share: HeadShare, *, capacity: int, key_rows_hold: int
    ) -> None:
        """The capture was created by the first process with the same arguments."""
        self.metadata = metadata
        self.folder = root / metadata.id
        self.fed = 0
        self.oldest: float | None = None
        self.attended = self.ahead = 0
        self._store = CountingStore(root)
        self._share = share
        self._attention: AttentionSink | None = None
        if metadata.attention != "dense":  # the first process is given the queries and keys of all heads
            return
        name = "attention_weight"
        plans = planned_arrays(metadata, capacity=capacity, key_rows_hold=key_rows_hold, head_groups=share.count)
        order = next(plan.order for plan in plans if plan.spec.name == name)
        array = zarr.open_array(self._store, path=f"{metadata.id}/{name}", mode="r+")
        rows = HeadRows(array, root, share.heads(metadata.model.n_head), self._store.count)
        layers = [info.index for info in metadata.model.layers if info.kind != "none"]
        self._attention = AttentionSink(rows, order, metadata.n_prompt, layers)

    @property
    def bytes_written(self) -> int:
        """Bytes put into files of this capture."""
        return self._store.written

    @property
    def held_bytes(self) -> int:
        """Bytes of rows handed over that wait for others before they are encoded."""
        return 0 if self._attention is None else sum(buffer.nbytes for buffer in self._attention.buffers)

    def attention(self, layer: int, first_query: int, first_key: int, weights: NDArray[np.float16]) -> None:
        """Rows (head, query, key) of one layer, of this process's heads."""
        if self._attention is not None:
            self._attention.add(layer, first_query, first_key, weights)

    def rows(self, count: int) -> None:
        """Everything of the first `count` rows has been handed over."""
        if count > self.fed:
            self.oldest = self.oldest or time.monotonic()
            self.fed = count

    def attention_rows(self, count: int) -> None:
        """Nothing: rows here wait for no readings."""

    def write_ahead(self) -> None:
        """Nothing, either."""

    def commit(self) -> None:
        """Write every row handed over, then leave the mark."""
        start, stop = self.metadata.committed, self.fed
        if stop == start:
            return
        if self._attention is not None:
            self._attention.commit(start, stop)
        self.metadata = self.metadata.model_copy(update={"committed": stop})
        self.oldest = None
        self._mark(f"{stop}")

    ready = False
    """The first process publishes the capture."""

    def finish(self, update: Mapping[str, Any]) -> None:
        """Write the rest, and say that no more will come."""
        self.commit()
        self._mark(f"{self.fed} end")

    def abandon(self, message: str) -> None:
        """What was written is the first process's to keep."""

    def _mark(self, text: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the first process has given up and tidied
            write_atomic(_mark_of(self.folder, self._share.rank), text.encode())

    def _drop(self, *_: Any) -> None:
        """What the first process writes."""

    tokens = vocabulary = layers = reductions = lens = lanes = tracked = model_probability = vectors = _drop


class Others:
    """What the first process knows of the others: how many rows all of them have written."""

    def __init__(self, folder: Path, share: HeadShare) -> None:
        self._marks = [_mark_of(folder, rank) for rank in range(1, share.count)]

    def rows(self) -> int:
        """Rows that every other process has written."""
        return min(count for count, _ in self._read())

    def wait(self, rows: int) -> None:
        """Return when all have written `rows` rows and will write no more.

        Raises:
            StoreError: one of them has written nothing for long.
        """
        before, since = self._read(), time.monotonic()
        while not all(count >= rows and ended for count, ended in before):
            time.sleep(RETRY_SECONDS / 5)
            now = self._read()
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                late = next(rank for rank, (count, ended) in enumerate(now, 1) if count < rows or not ended)
                raise StoreError(
                    f"process {late + 1} has written nothing for {PATIENCE_SECONDS:.0f} s; it may have died"
                )

    def _read(self) -> Sequence[tuple[int, bool]]:
        found = []
        for mark in self._marks:
            try:
                count, _, end = mark.read_text().partition(" ")
            except FileNotFoundError:
                count, end = "0", ""
            found.append((int(count), bool(end)))
        return found


def _mark_of(folder: Path, rank: int) -> Path:
    return folder / f"heads-{rank}{PARTIAL}"
