"""The passes of one capture: the prompt in one go, then token by token, each handing on its evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnlens.capture.entries import VocabularyEntries
from attnlens.capture.equipment import Equipment
from attnlens.capture.evidence import AttentionEvidence
from attnlens.capture.feeding import Feeder, is_out_of_memory
from attnlens.capture.forward import logits_of
from attnlens.capture.layer_table import seen_window
from attnlens.capture.memory import return_small_blocks
from attnlens.capture.midpoint import MidpointTracker
from attnlens.capture.override import tapped
from attnlens.capture.parallel import Parallel
from attnlens.capture.plan import Plan
from attnlens.capture.probe import Probed
from attnlens.capture.readings import Readings
from attnlens.capture.reported import ReportTap
from attnlens.capture.residual import LayerTracker
from attnlens.capture.residual_evidence import ResidualEvidence
from attnlens.capture.sampling import Sampler
from attnlens.capture.slots import ends_group
from attnlens.capture.tap import AttentionTap, Call
from attnlens.capture.value_norm import ValueNorms
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress
from attnlens.schemas.errors import ModelError, Setting
from attnlens.schemas.metadata import LayerInfo
from attnlens.store.layout import MIB
from attnlens.store.writer import CaptureWriter

GIVEN_LOGIT_BYTES = 64 * MIB
"""Float32 logits of given tokens that one pass may make, to record what the model itself thought of them."""


class Passes:
    """Runs the model over a planned text. `run` once, then read what it learnt."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        probed: Probed,
        vocabulary: Vocabulary,
        rows: CaptureWriter,
        sampler: Sampler | None,
        device: torch.device,
        progress: Progress,
        *,
        equipment: Equipment,
        parallel: Parallel | None = None,
    ) -> None:
        self._model, self._plan, self._probed = model, plan, probed
        self._vocabulary, self._rows, self._sampler, self._device = vocabulary, rows, sampler, device
        self._progress, self._parallel = progress, parallel
        self.timings: dict[str, float] = {}
        self._timeline: list[int] = []
        self._table = {layer.index: layer for layer in probed.table}
        names = [layer.path for layer in probed.table]
        mode = rows.metadata.attention or "dense"
        sinks = [layer.sinks for layer in probed.table]
        self._attention = AttentionEvidence(rows, plan.n_prompt, names, sinks, mode, parallel)
        self._readings = Readings(
            rows,
            VocabularyEntries(rows.vocabulary, vocabulary),
            at_depths=equipment.depth_readers(len(probed.layers)),
            inside=equipment.inside_reader(),
            origin=rows.metadata.lens_first,
            residual=ResidualEvidence(rows, equipment.residual) if equipment.residual else None,
            alone=parallel is None,
        )
        receive = self._readings.receive if self._readings.wants_depths else None
        self._tracker = LayerTracker(probed.path, probed.layers, receive, begun=self._layer_begun)
        self._midpoints = MidpointTracker(
            self._tracker, probed.layers, equipment.midpoints, self._readings.receive_inside
        )
        self._norms: ValueNorms | None = None
        if equipment.grams:
            self._norms = ValueNorms(rows, equipment.grams, parallel.gathered if parallel is not None else None)
        if equipment.tracked:
            rows.tracked(equipment.tracked_texts)
        self._tap: AttentionTap | ReportTap
        if probed.places is not None:
            self._tap = ReportTap(model, self._tracker, probed.places, self._attention.receive)
        else:
            self._tap = AttentionTap(
                self._tracker,
                self._attention.receive,
                observe=self._observe,
                table=self._table,
                lean=probed.lean,
                wanted_from=0 if mode == "dense" else plan.n_prompt - 1,
                cut_at=plan.n_prompt - 1,
                vectors=None if mode == "dense" else self._attention.receive_vectors,
                late_sinks=probed.late_sinks,
            )
        self._in_prefill = True
        self._known = 0
        self._ended = False
        self._feeder = Feeder(model, probed.style)
        self._dropped: list[int] = []
        self._made_again = True

    def run(self) -> None:
        """Feeds the prompt and, unless the text is given, generates.

        Raises:
            ModelError: the model fails, or its rows are no distributions.
            StoreError: the store can not be written.
        """
        tap = self._tap if isinstance(self._tap, ReportTap) else tapped(self._model, self._tap)
        with self._tracker, self._midpoints, tap:
            try:
                try:
                    self._passes()
                except KeyboardInterrupt:
                    self._flush()
                    raise
                self._flush()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise ModelError(
                    f"{type(self._model).__name__}: out of memory at token {self.seen}; shorten the text, or try ",
                    Setting("lens_tokens='generated'", "--lens-tokens generated"),
                ) from error
            finally:
                self._readings.beside.close()

    @property
    def n_token(self) -> int:
        """Tokens on the timeline."""
        return len(self._timeline)

    @property
    def notes(self) -> list[str]:
        """Remarks on the text, once it is there."""
        return self._plan.notes_after(
            self.seen, self.n_token, ended=self._ended, dropped=self._dropped, made_again=self._made_again
        )

    @property
    def seen(self) -> int:
        """Tokens that went through the model."""
        return self._tracker.seen

    def _append(self, tokens: Sequence[int]) -> None:
        """Puts tokens on the timeline, here and in the store."""
        self._timeline.extend(tokens)
        words = self._vocabulary
        self._rows.tokens(
            list(tokens),
            [words.text(token) for token in tokens],
            [words.bytes(token) for token in tokens],
            [words.special(token) for token in tokens],
        )

    def _passes(self) -> None:
        plan = self._plan
        text = [*plan.prompt.ids, *(plan.given or ())]
        self._append(text)
        started = time.perf_counter()
        self._progress.stage("prefill", total=len(self._probed.layers), unit="layers")
        generating = plan.given is None and plan.max_new_tokens > 0
        room = GIVEN_LOGIT_BYTES // (4 * self._probed.vocabulary_size)
        last = 1 + min(len(plan.given or ()), room)
        logits = self._pass(text, generating=generating, last=last)
        self._in_prefill = False
        self._rows.layers(self.table)
        self.timings["prefill_s"] = time.perf_counter() - started
        if not generating:
            self._given_probabilities(logits, text)
            self._complete(None)
            return
        self._rows.attention_rows(plan.n_prompt - 1)
        self._readings.beside.announce(partial(self._rows.rows, plan.n_prompt - 1))
        with self._readings.beside.sharing():
            self._generate(logits[-1])

    def _generate(self, logits: Tensor) -> None:
        """The decode loop: choose a token, complete the row that predicted it, feed it."""
        plan, sampler = self._plan, self._sampler
        assert sampler is not None
        self._progress.stage("decode", total=plan.max_new_tokens, unit="tokens")
        started = time.perf_counter()
        timeline = torch.tensor(self._timeline, device=self._device)
        while True:
            token = sampler.choose(timeline, logits)
            if self._parallel is not None:
                token = self._parallel.token(token)
            self._rows.model_probability(self.n_token - 1, _probability_of(logits, token))
            self._append([token])
            self._complete(token)
            self._progress.advance(1, note=self._note())
            timeline = torch.tensor(self._timeline, device=self._device)
            self._ended = sampler.is_over(timeline)
            if self._parallel is not None:  # a time limit is not reached by all at the same token
                self._ended = bool(self._parallel.token(int(self._ended)))
            if self._ended or self.n_token == plan.capacity:
                break
            logits = self._pass([token], generating=True)[-1]
        self.timings["decode_s"] = time.perf_counter() - started

    def _pass(self, tokens: Sequence[int], *, generating: bool, last: int = 1) -> Tensor:
        """Feeds tokens; returns logits (token, vocabulary) of at least the `last` ones."""
        first = self.seen
        ids = torch.tensor([list(tokens)], device=self._device)
        self._readings.begin_pass(first, ids[0, 1:])
        step = self._feeder.prepare(ids, use_cache=generating, last=last)
        self._tracker.begin(len(tokens), step)
        if step.fresh and first > 0:
            self._dropped.append(first)
            self._made_again = self._made_again and step.n_row == self._tracker.seen
        output = self._feeder.run(step)
        self._tracker.end()
        self._tap.forget_mask()
        self._attention.end_pass()
        self._readings.end_pass()
        if len(tokens) > 1 or ends_group(first):
            return_small_blocks()
        return logits_of(self._model, output)[0]

    def _complete(self, following: int | None) -> None:
        """What followed the last row is known: once the lens has read it, the rows so far may be committed."""
        self._known = self.seen
        if self._readings.complete(self.seen - 1, following):
            self._hand_over()

    def _flush(self) -> None:
        """Lets every row be committed whose evidence is whole."""
        self._readings.flush()
        self._hand_over()
        self._readings.beside.wait(self._progress)

    def _hand_over(self) -> None:
        """Sends the value norms that wait, and with them the rows so far are whole."""
        if self._norms is not None:
            self._norms.flush()
        self._rows.attention_rows(self._known)
        self._readings.beside.announce(partial(self._rows.rows, self._known))

    def _given_probabilities(self, logits: Tensor, text: Sequence[int]) -> None:
        """The model's own probabilities of given tokens, as far as the pass made their logits."""
        first = max(len(text) - len(logits), self._plan.n_prompt - 1)
        logits = logits[first - len(text) :]
        for row, token in enumerate(text[first + 1 :]):
            self._rows.model_probability(first + row, _probability_of(logits[row], token))

    def _note(self) -> str:
        """What is beside the progress bar."""
        return f"{self._rows.bytes_written / MIB:.1f} MiB written, buffer {self._rows.fill:.0%} full"

    def _layer_begun(self, layer: int) -> None:
        if self._in_prefill:
            self._progress.advance(1, note=self._note())

    def _observe(self, call: Call) -> None:
        """Passes values on; corrects a declared window by the mask of a prompt that is longer than it."""
        if self._norms is not None:
            self._norms.receive(call, self.seen, self._tracker.n_new)
        if self._in_prefill and call.mask is not None:
            self._table[call.layer] = seen_window(self._table[call.layer], call.mask, call.key.shape[2])

    @property
    def table(self) -> list[LayerInfo]:
        """The per-layer table, windows as the masks showed them."""
        return [self._table[index] for index in sorted(self._table)]

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt."""
        return self._timeline[self._plan.n_prompt :]

    @property
    def worst_row_sum(self) -> float:
        """Largest deviation of a row of attention from 1."""
        return self._attention.worst_row_sum


def _probability_of(logits: Tensor, token: int) -> NDArray[np.float32]:
    return np.array([float(torch.log_softmax(logits.float(), dim=-1)[token].exp())], dtype=np.float32)
