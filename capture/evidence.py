"""What a pass through the model leaves behind, on its way to the store: attention rows and lens readings.

The writer waits for what is still on its way from a device, compresses and writes, on its own thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from attnlens.capture.beside import Beside
from attnlens.capture.carry import carry
from attnlens.capture.entries import VocabularyEntries
from attnlens.capture.finite import check_readings, not_finite
from attnlens.capture.lenses.reader import Arrays, LaneReader
from attnlens.capture.parallel import Parallel
from attnlens.capture.slots import Slots, spread
from attnlens.capture.tap import Block, Vectors
from attnlens.schemas.arrays import MID
from attnlens.schemas.errors import ModelError, Setting
from attnlens.schemas.metadata import Mode
from attnlens.store.lanes import runs
from attnlens.store.late import Numbers, arrived
from attnlens.store.writer import CaptureWriter

ROW_SUM_LIMIT = 1e-3
ROWS_TOGETHER = 256
"""Rows (lane, token) of a prompt that are enough for one product with the unembedding; fewer wait for the next lane."""
STEP_BYTES = 16 << 20
"""Float32 rows of one token that wait for the next layer's; of a long text and a large model they go sooner."""
VECTOR_BYTES = 16 << 20
"""Queries of one layer that are handed over at a time."""


_Read = list[tuple[int, dict[str, Numbers]]]
"""Lanes that were read together, and their readings (lane · token, …)."""


class AttentionEvidence:
    """Receives blocks of attention rows, rounds them to float16, reduces those of generated queries, passes them on.

    Where queries and keys are kept, it receives those, too, and of the rows only the reductions go on.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        n_prompt: int,
        layer_names: list[str],
        sinks: list[bool],
        mode: Mode = "dense",
        parallel: Parallel | None = None,
    ) -> None:
        """`parallel`: the processes that have the other heads, which reductions are over as well."""
        self._writer = writer
        self._dtype: torch.dtype = getattr(torch, writer.metadata.model.dtype, torch.float32)
        self._parallel = parallel
        self._first_generated = n_prompt - 1
        self._names = layer_names
        self._sinks = sinks
        self._dense = mode == "dense"
        self._step: list[Block] = []
        self._step_bytes = 0
        self._vectors: list[Vectors] = []
        self._finite: list[tuple[int, Tensor]] = []
        self._off: list[tuple[int, Tensor]] = []
        self.worst_row_sum = 0.0

    def receive(self, block: Block) -> None:
        """Takes one block; rows of a single token wait for `end_pass`, so that all layers are worked on together."""
        if block.weights.shape[1] == 1:
            self._step.append(block)
            self._step_bytes += block.weights.nbytes
            if self._step_bytes >= STEP_BYTES:
                self._send_step()
            return
        off = self._off_by([block], block.weights[None])
        self._off.append((block.layer, off[0]))
        self._send([block], block.weights[None])

    def _off_by(self, blocks: list[Block], weights: Tensor) -> Tensor:
        """How far rows (layer, head, query, key) are from summing to 1, the furthest of each layer; sinks may lack."""
        off = weights.sum(dim=-1).sub_(1).flatten(1)
        sinks = [self._sinks[block.layer] for block in blocks]
        if not any(sinks):
            return off.abs_().amax(dim=1)
        return torch.where(torch.tensor(sinks, device=off.device), off.amax(dim=1), off.abs().amax(dim=1))

    def receive_vectors(self, vectors: Vectors) -> None:
        """Takes queries and keys of one layer; those of a single token wait for `end_pass`, as rows do."""
        if vectors.query.shape[1] == 1:
            self._vectors.append(vectors)
            return
        query, key = vectors.query.transpose(0, 1), vectors.key.transpose(0, 1)
        self._finite.append((vectors.layer, query.isfinite().all() & key.isfinite().all()))
        count = max(1, VECTOR_BYTES // (query[0].numel() * query.element_size()))
        for start in range(0, len(query), count):
            part = slice(start, start + count)
            # Copies: a view would change with the cache, or keep it alive.
            rows = [carry(self._all_heads(vector[part].clone(), 1)[None]) for vector in (query, key)]
            self._writer.vectors(vectors.first_token + start, [vectors.layer], *rows)

    def _send_vectors(self) -> None:
        """Sends queries and keys of one token, of all layers in one copy."""
        if not self._vectors:
            return
        device = self._vectors[0].query.device
        query = torch.stack([one.query.to(device).transpose(0, 1) for one in self._vectors])
        key = torch.stack([one.key.to(device).transpose(0, 1) for one in self._vectors])
        layers = [one.layer for one in self._vectors]
        self._finite.append((layers[0], query.isfinite().all() & key.isfinite().all()))
        query, key = self._all_heads(query, 2), self._all_heads(key, 2)
        self._writer.vectors(self._vectors[0].first_token, layers, carry(query), carry(key))
        self._vectors.clear()

    def _all_heads(self, values: Tensor, axis: int) -> Tensor:
        """Queries or keys with the heads of all processes along an axis."""
        return values if self._parallel is None else self._parallel.gathered(values, axis)

    def end_pass(self) -> None:
        """Everything of the pass was received: sends what waits, and checks that all rows were distributions.

        Raises:
            ModelError: rows of a layer do not sum to 1, or queries and keys are not finite.
        """
        self._send_vectors()
        broken = torch.tensor([not bool(finite) for _, finite in self._finite])
        if self._parallel is not None and len(broken):
            broken = self._parallel.highest(broken)
        for (layer, _), bad in zip(self._finite, broken.tolist(), strict=True):
            if bad:
                raise not_finite(f"{self._names[layer]}: its queries or keys are", self._dtype)
        self._finite.clear()
        self._send_step()
        device = self._off[0][1].device if self._off else torch.device("cpu")
        offs = torch.stack([off.to(device) for _, off in self._off]) if self._off else torch.empty(0)
        if self._parallel is not None and len(offs):
            offs = self._parallel.highest(offs)  # all refuse, or none
        worst = offs.tolist()
        for (layer, _), off in zip(self._off, worst, strict=True):
            if math.isnan(off):
                raise not_finite(f"{self._names[layer]}: its attention is", self._dtype)
            if not off <= ROW_SUM_LIMIT:
                raise ModelError(
                    f"{self._names[layer]}: rows of its attention sum to {1 + off:.4g}, expected 1; the model's "
                    "numbers overflow or are damaged"
                )
        self.worst_row_sum = max([self.worst_row_sum, *worst])
        self._off.clear()

    def _send_step(self) -> None:
        """Sends the rows of a single token that wait, all layers of equal shape and place in one go."""
        by_place: dict[tuple[int, ...], list[Block]] = {}
        for block in self._step:
            by_place.setdefault((block.first_query, block.first_key, *block.weights.shape), []).append(block)
        self._step.clear()
        self._step_bytes = 0
        for blocks in by_place.values():
            device = blocks[0].weights.device
            weights = torch.stack([block.weights.to(device) for block in blocks])
            self._off.extend(zip((block.layer for block in blocks), self._off_by(blocks, weights), strict=True))
            self._send(blocks, weights)

    def _send(self, blocks: list[Block], weights: Tensor) -> None:
        """Sends blocks of equal shape and place, whose weights are float32 (layer, head, query, key), in one copy."""
        half = weights.to(torch.float16)
        first_query, first_key = blocks[0].first_query, blocks[0].first_key
        layers = [block.layer for block in blocks]
        if self._dense:
            self._writer.attention_of_layers(layers, first_query, first_key, carry(half))
        skip = max(0, self._first_generated - first_query)
        if skip < half.shape[2]:
            maximum, mean = map(carry, self._reduced(half[:, :, skip:]))
            self._writer.reductions_of_layers(layers, first_query + skip, first_key, maximum, mean)

    def _reduced(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum and mean over heads, float16 (layer, query, key), of rows (layer, head, query, key)."""
        if self._parallel is None:
            return rows.amax(dim=1), rows.float().mean(dim=1).to(torch.float16)
        count = rows.shape[1] * self._parallel.share.count
        highest = self._parallel.highest(rows.amax(dim=1)).to(torch.float16)
        return highest, (self._parallel.total(rows.float().sum(dim=1)) / count).to(torch.float16)


class LensEvidence:
    """Reads residuals through a lens: depth after depth for a prompt, all depths of some tokens for a generation.

    `reader` reads and names what it reads; the lanes are depths, or layers for the streams inside them. Tokens before
    `origin` are not read. `beside` is given what is to be read.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        reader: LaneReader,
        entries: VocabularyEntries,
        beside: Beside,
        origin: int = 0,
    ) -> None:
        self._writer = writer
        self._dtype: torch.dtype = getattr(torch, writer.metadata.model.dtype, torch.float32)
        self._reader = reader
        self._entries = entries
        self._beside = beside
        self._origin = origin
        self._first = 0
        self._skip = 0
        self._following = torch.empty(0, dtype=torch.int64)
        self._held: dict[int, Tensor] = {}
        self._read: _Read = []
        self._last: dict[int, Tensor] = {}
        self._waiting: list[tuple[int, Tensor, int]] = []
        self._slots = Slots()

    def begin_pass(self, first_token: int, following: Tensor) -> None:
        """A pass begins at `first_token`; `following` int64 (token) are the tokens known to come after its first ones.

        The row after these, the last of the pass, waits for `complete`, which is told what came next.
        """
        self._first = first_token
        self._skip = min(len(following), max(0, self._origin - first_token))
        self._following = following
        self._held.clear()
        self._read = []  # another one: readings of the last pass may still be made
        self._last.clear()

    def receive(self, lane: int, residual: Tensor) -> None:
        """Residual (1, token, feature) of a lane."""
        known = len(self._following)
        # Clones: views would keep the whole prompt's residual of every depth alive, or be written over.
        if known > self._skip:
            self._held[lane] = residual[0, self._skip : known].clone()
            if len(self._held) * (known - self._skip) >= ROWS_TOGETHER:
                self._read_held()
        self._last[lane] = residual[0, known:].clone()

    def end_pass(self) -> None:
        """Sends the readings of all rows of the pass but the last, once they are made."""
        self._read_held()
        if len(self._following) > self._skip:
            self._beside.do(partial(self._send_read, self._first + self._skip, self._read), 0)

    def _read_held(self) -> None:
        """Has the streams read of lanes that were received since, in the order of the lanes."""
        if self._held:
            device = self._following.device
            streams = torch.stack([stream.to(device) for stream in self._held.values()])
            lanes, following = list(self._held), self._following[self._skip :]
            self._held.clear()
            self._beside.do(partial(self._read_streams, self._read, lanes, streams, following), streams.nbytes)

    def _read_streams(self, read: _Read, lanes: list[int], streams: Tensor, following: Tensor) -> None:
        read.append((len(lanes), self._reader.several(lanes, streams, following)))

    def _send_read(self, first_token: int, read: _Read) -> None:
        joined = {}
        for name in read[0][1]:
            parts = [(count, arrived(arrays[name])) for count, arrays in read]
            joined[name] = np.concatenate([part.reshape(count, -1, *part.shape[1:]) for count, part in parts])
        read.clear()
        self.send(first_token, joined)

    def complete(self, following: int | None) -> None:
        """The last row of the pass is known to be followed by `following` (None: by nothing); it waits for `take`."""
        streams = [self._last[lane] for lane in self._reader.lanes]
        residual = torch.cat([stream.to(streams[0].device) for stream in streams])
        self._last.clear()
        self._waiting.append((self._first + len(self._following), residual, -1 if following is None else following))

    def take(self) -> Waiting:
        """What waits, to be read together."""
        first, count = self._waiting[0][0], len(self._waiting)
        residual = torch.stack([stream for _, stream, _ in self._waiting])
        following = torch.tensor([after for _, _, after in self._waiting], device=residual.device)
        alone = self._waiting[-1][2] < 0  # the end of a given text, on its own every time
        self._waiting.clear()
        size, at = (count, slice(0, count)) if alone else self._slots.place(first, count)
        return Waiting(first=first, residual=spread(residual, size, at), following=spread(following, size, at), at=at)

    def read(self, waiting: Waiting) -> Arrays:
        """Readings (lane, token, …) of what waited."""
        arrays = self._reader.every(waiting.residual, waiting.following)
        return {name: values[:, waiting.at] for name, values in arrays.items()}

    def use(self, arrays: Arrays, row: int) -> None:
        """Enters the ids of one row of `arrays` into the vocabulary."""
        self._entries.use(arrays[self._reader.token_array][:, row : row + 1])

    def send(self, first_token: int, arrays: Arrays) -> None:
        """Sends arrays (lane, token, …) of all lanes.

        Raises:
            ModelError: some of them are no numbers, because the stream or its logits overflow.
        """
        name = self._reader.names["lens_entropy"]
        places = [f"{'layer' if name in MID.values() else 'depth'} {lane}" for lane in self._reader.lanes]
        tokens = range(first_token, first_token + arrays[name].shape[1])
        check_readings(arrays[name], places, tokens, self._dtype, (", or ", Setting("lens=False")))
        self._entries.use(arrays[self._reader.token_array])
        for lanes, place in runs(self._reader.lanes):
            self._writer.lanes(first_token, lanes, {name: values[place] for name, values in arrays.items()})


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Generated rows, the first of them timeline position `first`, at the places `at` of a group.

    residual: (token, lane, feature); following: int64 (token).
    """

    first: int
    residual: Tensor
    following: Tensor
    at: slice
