"""Everything that is read from the residual streams of a pass, in step: lenses, streams inside layers, the streams."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from attnlens.capture.beside import Beside
from attnlens.capture.entries import VocabularyEntries
from attnlens.capture.evidence import LensEvidence, Waiting
from attnlens.capture.lenses.reader import LaneReader
from attnlens.capture.residual_evidence import ResidualEvidence
from attnlens.capture.slots import ends_group
from attnlens.store.writer import CaptureWriter

WAITING_SECONDS = 1.0
"""How long generated rows wait for each other at the lens, well within what a kill may lose."""


class Readings:
    """Passes on residuals, of depths and of layers, to all that wants them.

    `at_depths` read the streams between layers, `inside` those inside them, both of the tokens from `origin` on;
    `residual` keeps the streams between layers.
    `alone`: no other process holds a part of the model, so that not all must do the same at the same time: rows wait
    no longer than a second, and a processor reads them beside the model.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        entries: VocabularyEntries,
        *,
        at_depths: Sequence[LaneReader],
        inside: LaneReader | None = None,
        origin: int = 0,
        residual: ResidualEvidence | None = None,
        alone: bool = True,
    ) -> None:
        readers = [*at_depths, *([inside] if inside else [])]
        self.beside = Beside(threaded=alone and bool(readers) and all(reader.can_walk for reader in readers))
        """Where lenses read; what it announces comes after all that was received before."""
        self._lenses = [LensEvidence(writer, reader, entries, self.beside, origin) for reader in readers]
        self._depths = self._lenses[: len(at_depths)]
        self._inside = self._lenses[-1] if inside else None
        self._residual = residual
        self._by_clock = alone
        self._waiting = 0
        self._waiting_since = 0.0

    @property
    def wants_depths(self) -> bool:
        """Whether residuals of depths are of use at all."""
        return bool(self._depths) or self._residual is not None

    def begin_pass(self, first_token: int, following: Tensor) -> None:
        """A pass begins at `first_token`; `following` int64 (token): what is known to come after its first ones."""
        for lens in self._lenses:
            lens.begin_pass(first_token, following)
        if self._residual is not None:
            self._residual.begin_pass(first_token)

    def receive(self, depth: int, residual: Tensor) -> None:
        """Residual (1, token, feature) at a depth."""
        for lens in self._depths:
            lens.receive(depth, residual)
        if self._residual is not None:
            self._residual.receive(depth, residual)

    def receive_inside(self, layer: int, residual: Tensor) -> None:
        """Residual (1, token, feature) inside a layer: after its attention, before its MLP."""
        if self._inside is not None:
            self._inside.receive(layer, residual)

    def end_pass(self) -> None:
        """Sends what is known of all rows of the pass but the last."""
        for lens in self._lenses:
            lens.end_pass()
        if self._residual is not None:
            self._residual.end_pass()

    def complete(self, row: int, following: int | None) -> bool:
        """Row `row`, the last of the pass, is followed by `following` (None: by nothing). True once it is being read.

        Rows of generated tokens wait for each other a moment.
        """
        if not self._lenses:
            return True
        for lens in self._lenses:
            lens.complete(following)
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting += 1
        late = self._by_clock and time.monotonic() - self._waiting_since >= WAITING_SECONDS
        if following is not None and not ends_group(row) and not late:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Has the rows read and sent that wait."""
        if self._waiting:
            taken = [lens.take() for lens in self._lenses]
            size = sum(waiting.residual.nbytes for waiting in taken)
            count, self._waiting = self._waiting, 0
            self.beside.do(partial(self._read, taken, count), size)

    def _read(self, taken: Sequence[Waiting], count: int) -> None:
        read = [(lens, waiting.first, lens.read(waiting)) for lens, waiting in zip(self._lenses, taken, strict=True)]
        for row in range(count):  # so that the order of the vocabulary does not depend on what met here
            for lens, _, arrays in read:
                lens.use(arrays, row)
        for lens, first, arrays in read:
            lens.send(first, arrays)
