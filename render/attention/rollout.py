"""Attention rollout: where information comes from when every layer passes on half of what it has itself.

Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers. With A_l the mean over heads of layer l's attention
(query, key) and I the identity, Â_l is A_l + I with its rows normalised to 1, and the rollout after layer l is
Â_l · Â_{l-1} · … · Â_0. A layer without attention mixes nothing: its Â is I.

A row needs the rows of all earlier queries: all attention up to the last query is read once, and L·T² multiplications
are made for each query. Nothing of that size is held in memory: rows go to an unnamed temporary file of L·T²·4 bytes,
and are read back in blocks.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from attnlens.render.attention.reduce import Floats
from attnlens.schemas.errors import InputError

BUDGET = 16 * 2**20
"""Bytes of attention, and of earlier rows, that are held at a time."""

DISK = 8 * 2**30
"""Bytes that the temporary file may grow to."""


class Rollout:
    """Rollout rows of one capture, made in the order of queries as far as they are asked for.

    Args:
        average: mean over heads of the attention of queries start … stop-1, float32 (layer, query, key), all layers.
        n_layer, n_row: sizes; n_row is the number of queries that have rows.

    Raises:
        InputError: the temporary file would be too large.
    """

    def __init__(self, average: Callable[[int, int], Floats], n_layer: int, n_row: int) -> None:
        size = 4 * n_layer * n_row * n_row
        if size > DISK:
            raise InputError(
                f"--heads rollout: {n_row} tokens × {n_layer} layers need {size / 2**30:.1f} GiB of temporary files, "
                f"the limit is {DISK / 2**30:.0f} GiB: choose other --heads"
            )
        self._average = average
        self._n_layer, self._n_row = n_layer, n_row
        self._step = max(1, BUDGET // max(1, 4 * n_layer * n_row))
        self._block = max(1, BUDGET // max(1, 4 * n_row))
        self._done = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (unnamed, and lives as long as this object)
        weakref.finalize(self, self._file.close)

    def row(self, query: int) -> Floats:
        """Rollout after each layer from one query: float32 (layer, key), keys 0 … query."""
        while self._done <= query:
            stop = min(self._done + self._step, self._n_row)
            self._extend(self._done, stop)
            self._done = stop
        return np.stack([self._read(layer, query, query + 1)[0, : query + 1] for layer in range(self._n_layer)])

    def _extend(self, start: int, stop: int) -> None:
        attention = self._average(start, stop)
        below: Floats = np.empty((0, 0), np.float32)
        for layer in range(self._n_layer):
            mixed = mixing(attention[layer, :, :stop], start)
            result = mixed
            if layer:
                result = mixed[:, start:] @ below  # float64, rounded once: no colour depends on the order of sums
                for first in range(0, start, self._block):
                    last = min(first + self._block, start)
                    result += mixed[:, first:last] @ self._read(layer - 1, first, last)[:, :stop]
            below = result.astype(np.float32)
            self._write(layer, start, below)

    def _write(self, layer: int, start: int, rows: Floats) -> None:
        wide: Floats = np.zeros((len(rows), self._n_row), np.float32)
        wide[:, : rows.shape[1]] = rows
        self._file.seek(4 * self._n_row * (layer * self._n_row + start))
        try:
            self._file.write(wide.tobytes())
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"--heads rollout: cannot write temporary files to {tempfile.gettempdir()}: {error.strerror}"
            ) from error

    def _read(self, layer: int, first: int, last: int) -> Floats:
        self._file.seek(4 * self._n_row * (layer * self._n_row + first))
        data = self._file.read(4 * self._n_row * (last - first))
        return np.frombuffer(data, np.float32).reshape(last - first, self._n_row)


def mixing(attention: Floats, start: int) -> npt.NDArray[np.float64]:
    """Rows of Â = (A + I) / row sums for the queries from `start` on: (query, key) → float64 (query, key)."""
    mixed = np.where(np.isnan(attention), 0.0, attention.astype(np.float64))
    mixed += np.eye(attention.shape[0], attention.shape[1], k=start)
    return np.asarray(mixed / mixed.sum(axis=1, keepdims=True))
