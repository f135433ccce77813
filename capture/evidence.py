"""What a pass through the model leaves behind, on its way to the store: attention rows and lens readings.

All device → host traffic is here. The writer compresses and writes on its own thread.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.tap import Block
from attnlens.capture.vocabulary import Vocabulary
from attnlens.schemas.errors import ModelError
from attnlens.store.writer import CaptureWriter

LENS_ARRAYS = ("lens_token", "lens_probability", "lens_entropy", "next_rank", "next_probability")
ROW_SUM_LIMIT = 1e-3
WAITING_ROWS = 8
WAITING_SECONDS = 0.5
"""How long generated rows wait for each other at the lens, well within what a kill may lose."""


class AttentionEvidence:
    """Receives blocks of attention rows, rounds them to float16, reduces those of generated queries, passes them on."""

    def __init__(self, writer: CaptureWriter, n_prompt: int, layer_names: list[str], sinks: list[bool]) -> None:
        self._writer = writer
        self._first_generated = n_prompt - 1
        self._names = layer_names
        self._sinks = sinks
        self._step: list[Block] = []
        self._off: list[tuple[int, Tensor]] = []
        self.worst_row_sum = 0.0

    def receive(self, block: Block) -> None:
        """Takes one block; rows of a single token wait for `end_pass`, so that all layers travel in one copy."""
        total = block.weights.sum(dim=-1)
        off = total - 1
        self._off.append((block.layer, off.max() if self._sinks[block.layer] else off.abs().max()))
        half = Block(
            layer=block.layer,
            first_query=block.first_query,
            first_key=block.first_key,
            weights=block.weights.to(torch.float16),
        )
        if half.weights.shape[1] == 1:
            self._step.append(half)
        else:
            self._send([half])

    def end_pass(self) -> None:
        """Everything of the pass was received: sends what waits, and checks that all rows were distributions.

        Raises:
            ModelError: rows of a layer do not sum to 1.
        """
        by_shape: dict[tuple[int, ...], list[Block]] = {}
        for block in self._step:
            by_shape.setdefault(tuple(block.weights.shape), []).append(block)
        self._step.clear()
        for blocks in by_shape.values():
            self._send(blocks)
        device = self._off[0][1].device if self._off else torch.device("cpu")
        worst = torch.stack([off.to(device) for _, off in self._off]).tolist() if self._off else []
        for (layer, _), off in zip(self._off, worst, strict=True):
            if not off <= ROW_SUM_LIMIT:
                raise ModelError(
                    f"{self._names[layer]}: rows of its attention sum to {1 + off:.4g}, expected 1; the model's "
                    "numbers overflow or are damaged (another --dtype may help)"
                )
        self.worst_row_sum = max([self.worst_row_sum, *worst])
        self._off.clear()

    def _send(self, blocks: list[Block]) -> None:
        """Sends blocks of equal shape and place: float16 (layer, head, query, key) in one copy."""
        device = blocks[0].weights.device
        stacked = torch.stack([block.weights.to(device) for block in blocks])
        first_query, first_key = blocks[0].first_query, blocks[0].first_key
        skip = max(0, self._first_generated - first_query)
        reduced: tuple[Any, Any] | None = None
        if skip < stacked.shape[2]:
            rows = stacked[:, :, skip:]
            reduced = (_host(rows.amax(dim=1)), _host(rows.float().mean(dim=1).to(torch.float16)))
        weights = _host(stacked)
        for index, block in enumerate(blocks):
            self._writer.attention(block.layer, first_query, first_key, weights[index])
            if reduced is not None:
                maximum, mean = reduced
                self._writer.reductions(block.layer, first_query + skip, first_key, maximum[index], mean[index])


def _host(tensor: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().contiguous().cpu().numpy()
    return array


class LensEvidence:
    """Reads residuals through the lens: depth after depth for a prompt, all depths of some tokens for a generation."""

    def __init__(
        self, writer: CaptureWriter, lens: LogitLens, vocabulary: Vocabulary, *, n_depth: int, top_k: int, size: int
    ) -> None:
        self._writer = writer
        self._lens = lens
        self._vocabulary = vocabulary
        self._known = np.zeros(size, dtype=bool)
        self._n_depth = n_depth
        self._top_k = top_k
        self._first = 0
        self._following = torch.empty(0, dtype=torch.int64)
        self._read: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
        self._last: list[Tensor] = []
        self._waiting: list[tuple[int, Tensor, int]] = []
        self._waiting_since = 0.0

    def begin_pass(self, first_token: int, following: Tensor) -> None:
        """A pass begins at `first_token`; `following` int64 (token) are the tokens known to come after its first ones.

        The row after these, the last of the pass, waits for `complete`, which is told what came next.
        """
        self._first = first_token
        self._following = following
        self._read.clear()
        self._last.clear()

    def receive(self, depth: int, residual: Tensor) -> None:
        """Residual (1, token, feature) at a depth."""
        known = len(self._following)
        if known:
            self._read[depth] = self._lens_rows(residual[0, :known], self._following)
        # A clone: a view would keep the whole prompt's residual of every depth alive.
        self._last.append(residual[0, known:].clone())

    def end_pass(self) -> None:
        """Sends the readings of all rows of the pass but the last."""
        if self._read:
            depths = [self._read[depth] for depth in sorted(self._read)]
            self._send(self._first, {name: np.stack([arrays[name] for arrays in depths]) for name in LENS_ARRAYS})
            self._read.clear()

    def complete(self, following: int | None) -> bool:
        """The last row of the pass is known to be followed by `following` (None: by nothing). True once it was sent.

        Rows of generated tokens wait for each other a moment: the product with the unembedding costs the same for one
        as for several.
        """
        device = self._last[-1].device
        residual = torch.cat([stream.to(device) for stream in self._last])
        self._last.clear()
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append((self._first + len(self._following), residual, -1 if following is None else following))
        if len(self._waiting) < WAITING_ROWS and time.monotonic() - self._waiting_since < WAITING_SECONDS:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Sends the rows that wait."""
        if not self._waiting:
            return
        first, count = self._waiting[0][0], len(self._waiting)
        residual = torch.cat([stream for _, stream, _ in self._waiting])
        following = torch.tensor([after for _, _, after in self._waiting], device=residual.device)
        self._waiting.clear()
        arrays = self._lens_rows(residual, following.repeat_interleave(self._n_depth))
        by_row = {name: array.reshape(count, self._n_depth, *array.shape[1:]) for name, array in arrays.items()}
        self._send(first, {name: array.swapaxes(0, 1) for name, array in by_row.items()})

    def _lens_rows(self, residual: Tensor, following: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        """Readings of residuals (row, feature), as the store's arrays."""
        read = self._lens.read(residual, following, self._top_k)
        return {
            "lens_token": _host(read.token),
            "lens_probability": _host(read.probability),
            "lens_entropy": _host(read.entropy),
            "next_rank": _host(read.next_rank),
            "next_probability": _host(read.next_probability),
        }

    def _send(self, first_token: int, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        used = np.unique(arrays["lens_token"])
        new = used[~self._known[used]]
        if len(new):
            self._known[new] = True
            ids = [int(token) for token in new]
            self._writer.vocabulary(ids, [self._vocabulary.text(token) for token in ids])
        self._writer.lens(first_token, slice(0, self._n_depth), arrays)
