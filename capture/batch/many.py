"""`capture_many`: many prompts, one store, one model that is loaded and probed once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from attnlens.capture.batch.asked import Asked, Defaults, ask
from attnlens.capture.batch.launch import Launch, read_launch
from attnlens.capture.batch.refusal import Refusal, going_on, refuse_if_none
from attnlens.capture.batch.watch import PromptProgress
from attnlens.capture.failure import device_is_lost, named, pieces, store_is_lost
from attnlens.capture.generation_fields import check_overrides
from attnlens.capture.model_kind import check_model
from attnlens.capture.origin import Origin
from attnlens.capture.parallel import on_first, parallel_of
from attnlens.capture.plan import Plan, Text, plan_capture, read_prompt
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.session import CaptureReport, Session, open_session
from attnlens.capture.settings import Generation, Settings
from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import InputError, Interrupted, ModelError, Setting, StoreError, command_line
from attnlens.schemas.metadata import Adapter, BatchPrompt
from attnlens.store.batch import BatchWriter, check_batch, open_batch
from attnlens.store.replacement import Mode, mode_of

NOT_COMPARED = ("buffer_bytes", "lenses")
"""Settings that a resumed run may change, or that are told by what they came to: a store never names a local path."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A prompt that could not be captured, or not to its end: its id, where it stands, its capture, and why.

    `pieces` are the words of the error, those that name a setting apart (`Setting`).
    """

    id: str
    where: str
    capture_id: str
    pieces: tuple[str, ...]

    @property
    def message(self) -> str:
        """Why, with settings called by their parameters."""
        return "".join(self.pieces)

    def __str__(self) -> str:
        return f"prompt {self.id} ({self.where}): {self.message}"

    def on_command_line(self) -> str:
        """The same with settings called by their options."""
        return f"prompt {self.id} ({self.where}): {command_line(self.pieces)}"

    def to_json(self) -> dict[str, str]:
        """What `--json` prints."""
        return {
            "id": self.id,
            "where": self.where,
            "capture_id": self.capture_id,
            "message": command_line(self.pieces),
        }


@dataclass(frozen=True, kw_only=True)
class ManyReport:
    """What this process did. `kept`: ids of prompts that were complete before; `left`: how many prompts of the store
    are neither complete nor failed, None while other processes are at work.
    """

    path: Path
    prompts: int
    captures: list[CaptureReport]
    failures: list[Failure]
    kept: list[str]
    left: int | None
    seconds: float


def capture_many(
    model: nn.Module,
    tokenizer: Any,
    prompts: Iterable[Text | Mapping[str, Any]],
    store: str | PathLike[str],
    *,
    system: str | None = None,
    raw: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_last: bool = False,
    seam: str = "prompt",
    max_new_tokens: int = 256,
    temperature: float = 0.1,
    top_p: float = 0.9,
    seed: int = 0,
    generation: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    model_id: str | None = None,
    revision: str | None = None,
    quantization: dict[str, Any] | None = None,
    label: str | None = None,
    origin: Origin | None = None,
    progress: Progress | None = None,
) -> ManyReport:
    """Captures many prompts into one store, one capture each, in their order. A prompt that fails is recorded and told
    in the report; the others go on.

    Each prompt samples with a seed of its own, made of `seed` and its id (`attnlens.capture.batch.asked.seed_of`), so
    what comes out does not depend on the others. Called by every process under `torchrun` or `accelerate launch`, it
    shares the prompts among them.

    Args:
        model: a causal language model of transformers, on any device.
        tokenizer: its tokenizer.
        prompts: each a text, chat messages, token ids, or a mapping with some of the keys of a line of `--prompts`:
            id; prompt, messages or token_ids; completion; system, raw, tools, continue, seam, max_new_tokens,
            temperature, top_p, seed, generation. A prompt without an id gets one made of its content.
        store: path of the `.zarr` folder to make.
        system: a system message before every text prompt that has none.
        raw: feed texts as they are, without the chat template.
        tools: descriptions of tools for the chat template, as JSON objects.
        continue_last: continue the last message of each chat, which is the assistant's, instead of answering it.
        seam: as for `capture`.
        max_new_tokens: how many tokens to generate at the most.
        temperature: of sampling; 0 takes the most probable token.
        top_p: nucleus of sampling, Holtzman et al. 2020.
        seed: of sampling. A prompt's own seed is used as it is.
        generation: fields of the model's generation settings to replace; None unsets one.
        settings: what is kept of each, for example `Settings(top_k=3)`.
        overwrite: replace a store that is there. The new one is written beside it (`run.new.zarr` for `run.zarr`) and
            takes its place when every prompt is complete.
        append: add captures to the store that is there.
        resume: go on with the same prompts in the store that is there: captures that are missing, partial or failed
            are made again, complete ones are kept. Begins if nothing is there. Goes on with what a run that was to
            overwrite the store has left beside it; with `overwrite` too, begins one if there is none.
        model_id: name to record; by default the model's own.
        revision: of the model, to record.
        quantization: to record, where the model's config does not say.
        label: free text to record and to show beside the model's name, which tells this run from others of the model:
            one line, at most 200 characters.
        origin: all of these together, as `attnlens.capture.models.load` knows them; what is given beside it goes first.
        progress: is told what happens.

    Raises:
        InputError: an argument that cannot be used, or no prompt that can be, before anything is captured.
        ModelError: the model cannot be captured truthfully.
        StoreError: the store cannot be written.
        Interrupted: Ctrl-C; what was committed is kept.
    """
    settings = settings or Settings()
    sampling = Generation(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        overrides=check_overrides({} if generation is None else generation),
    )
    wording = PromptOptions(
        system=system,
        raw=raw,
        tools=None if tools is None else tuple(tools),
        continue_last=continue_last,
        seam=seam,
    )
    check_model(model)
    settings.check()
    sampling.check()
    wording.check()
    defaults = Defaults(generation=sampling, wording=wording)
    asked = ask(((f"prompt {number}", prompt) for number, prompt in enumerate(prompts)), defaults, "the prompts")
    mode = mode_of(overwrite=overwrite, append=append, resume=resume)
    launch = read_launch()
    progress = progress or Silent()
    return run_batch(
        model,
        tokenizer,
        asked,
        store,
        settings=settings,
        defaults=defaults,
        mode=mode,
        launch=launch,
        origin=(origin or Origin()).given(id=model_id, revision=revision, quantization=quantization, label=label),
        progress=progress,
    )


def check_store(
    store: str | PathLike[str],
    asked: Sequence[Asked],
    settings: Settings,
    defaults: Defaults,
    mode: Mode,
    launch: Launch,
) -> list[str]:
    """Refuses a store that the prompts cannot go to, before a model is loaded. Returns ids that are complete there.

    Raises:
        InputError: something is there, other prompts or settings were given, or another run is writing.
        StoreError: what is there is no store of this version.
    """
    return check_batch(store, wanted(asked), _shared(settings, defaults), mode=mode, run=launch.run)


def wanted(asked: Sequence[Asked]) -> list[tuple[str, str]]:
    """Id and hash of each prompt."""
    return [(one.id, one.sha256) for one in asked]


def run_batch(
    model: nn.Module,
    tokenizer: Any,
    asked: Sequence[Asked],
    store: str | PathLike[str],
    *,
    settings: Settings,
    defaults: Defaults,
    mode: Mode,
    launch: Launch,
    origin: Origin,
    progress: Progress,
) -> ManyReport:
    """Captures prompts that were checked. As `capture_many`."""
    started = time.perf_counter()
    first = _first_ids(tokenizer, asked)
    parallel = parallel_of(model)
    with open_session(model, tokenizer, first, settings, progress, origin=origin) as session:
        session.failed("0000", "", "", defaults.generation)  # refuses a model that cannot give what was asked for
        refuse_if_none(asked, lambda one: session.sampler(one.generation, going_on(one, first)))
        shared = {**_shared(settings, defaults), **_model(session)}
        together = launch.shared and parallel is None
        opened = on_first(
            parallel,
            lambda: (
                check_batch(store, wanted(asked), shared, mode=mode, run=launch.run),
                open_batch(store, wanted(asked), shared, mode=mode, run=launch.run, shared=together),
            ),
        )
        kept, writer = opened if opened is not None else ([], None)
        batch = _Batch(session, writer, asked, progress)
        try:
            batch.run()
        except BaseException:
            if writer is not None:
                with contextlib.suppress(StoreError):  # what ended the run is told, and not what follows from it
                    writer.close()
            raise
        last = writer.close() if writer is not None else False
    complete, failed = writer.finished() if writer is not None else (0, 0)
    progress.end()
    if writer is not None and not last:
        writer.wait()  # a launcher stops all processes when one leaves with an error
    return ManyReport(
        path=Path(store),
        prompts=len(asked),
        captures=batch.captures,
        failures=batch.failures,
        kept=kept,
        left=len(asked) - complete - failed if last else None,
        seconds=time.perf_counter() - started,
    )


class _Batch:
    """The prompts of one process, one after the other."""

    def __init__(
        self, session: Session, writer: BatchWriter | None, asked: Sequence[Asked], progress: Progress
    ) -> None:
        """`writer` is None on all but the first of the processes that hold the model."""
        self._session, self._writer, self._progress = session, writer, progress
        self._asked = {one.id: one for one in asked}
        self.captures: list[CaptureReport] = []
        self.failures: list[Failure] = []

    def run(self) -> None:
        """Captures every prompt that no other process takes."""
        waiting = self._writer.pending() if self._writer is not None else []
        if self._session.parallel is not None:
            waiting = self._session.parallel.told(waiting)
        done = sum(self._finished())
        self._progress.stage("prompts", total=len(self._asked) - done, unit="prompts")
        for prompt in waiting:
            if self._writer is not None and not self._writer.claim(prompt.capture):
                continue
            one = self._asked[prompt.prompt_id]
            watch = PromptProgress(self._progress, one.id, lambda: len(self.failures))
            try:
                self.captures.append(self._capture(one, prompt, watch))
            except Interrupted:
                raise Interrupted("interrupted at ", *self._kept(prompt)) from None
            except Exception as error:  # noqa: BLE001 - the code of a model or a tokenizer may raise anything
                self._go_on_after(error, prompt)
                failure = Failure(id=one.id, where=one.where, capture_id=prompt.capture, pieces=pieces(error))
                self.failures.append(failure)
            finished = self._finished(exact=False)
            self._progress.advance(sum(finished) - done, note=_failed(finished[1]))
            done = sum(finished)
        if self._writer is not None:
            self._writer.flush()
            finished = self._finished()
            self._progress.advance(sum(finished) - done, note=_failed(finished[1]))

    def _finished(self, *, exact: bool = True) -> tuple[int, int]:
        return self._writer.finished(exact=exact) if self._writer is not None else (0, 0)

    def _go_on_after(self, error: Exception, prompt: BatchPrompt) -> None:
        """Ends the run where no other prompt can be captured either; what is left is for --resume.

        Raises:
            StoreError: the store cannot be written.
            ModelError: the device no longer answers.
            Exception: an error that the other processes which hold the model may not have met.
        """
        if device_is_lost(error, self._session.device):
            raise ModelError(
                f"the device {self._session.device} no longer answers ({named(error)}) at ", *self._kept(prompt)
            ) from error
        if store_is_lost(error):
            raise error
        if self._session.parallel is not None and not isinstance(error, Refusal):
            raise error

    def _capture(self, one: Asked, prompt: BatchPrompt, watch: Progress) -> CaptureReport:
        started = time.perf_counter()
        try:
            plan = self._plan(one)
            return self._session.capture(
                plan, one.generation, self._writer, prompt.capture, watch, prompt_id=one.id, started=started
            )
        except Interrupted:
            raise
        except Exception as error:
            if not (store_is_lost(error) or device_is_lost(error, self._session.device)):
                self._record(one, prompt, error)
            raise

    def _plan(self, one: Asked) -> Plan:
        """What is to be captured; an OSError of a tokenizer is the prompt's, and no store's."""
        try:
            return plan_of(self._session.model, self._session.tokenizer, one)
        except OSError as error:
            raise InputError("the prompt cannot be made into tokens: ", *pieces(error)) from error

    def _record(self, one: Asked, prompt: BatchPrompt, error: Exception) -> None:
        """Keeps why a prompt failed, unless its capture has begun and says so itself."""
        if self._writer is not None and not self._writer.has_begun(prompt.capture):
            failed = self._session.failed(prompt.capture, one.id, _words(one), one.generation)
            self._writer.fail(failed, named(error))

    def _kept(self, prompt: BatchPrompt) -> tuple[str, ...]:
        if self._writer is not None:
            with contextlib.suppress(StoreError):  # what ended the run is told, and what is not on the disk not counted
                self._writer.flush()
        complete, _ = self._finished()
        return (
            f"prompt {prompt.prompt_id}: {complete} of {len(self._asked)} prompts are complete; the same with ",
            Setting("resume=True", "--resume"),
            " does the rest",
        )


def plan_of(model: nn.Module, tokenizer: Any, one: Asked) -> Plan:
    """What is to be captured of one prompt.

    Raises:
        InputError: it cannot be used, or the model's template, vocabulary or context refuses it.
    """
    if one.problem is not None:
        raise InputError(one.problem)
    prompt = read_prompt(tokenizer, one.prompt, one.wording)
    new = one.generation.max_new_tokens
    return plan_capture(model, tokenizer, prompt, one.completion, one.token_ids, new, one.wording)


def _first_ids(tokenizer: Any, asked: Sequence[Asked]) -> list[int]:
    """Ids to probe the model with: of the first prompt that has any, so that every process and every resumed run probes
    with the same.

    Raises:
        InputError: no prompt can be made into tokens.
    """
    problem: InputError | None = None
    for one in asked:
        try:
            if one.problem is None:
                return read_prompt(tokenizer, one.prompt, one.wording).ids
        except Exception as error:  # noqa: BLE001 - a template's or tokenizer's own code may run here
            problem = problem or InputError(
                f"none of the {len(asked)} prompts can be used; {one.where}: ", *pieces(error)
            )
    assert problem is not None
    raise problem


def _shared(settings: Settings, defaults: Defaults) -> dict[str, Any]:
    """What a resumed run must have in common with the one before, as far as it is known without the model."""
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if name not in NOT_COMPARED}
    values = {**kept, **dataclasses.asdict(defaults.generation), **dataclasses.asdict(defaults.wording)}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _model(session: Session) -> dict[str, Any]:
    """What identifies the model: its record without the configuration, the weights of its tail and of its adapters."""
    about = session.model_info
    values: dict[str, Any] = {
        "model": about.id,
        "revision": about.revision,
        "architecture": about.architecture,
        "dtype": about.dtype,
        "quantization": about.quantization,
        "n_layer": about.n_layer,
        "lenses": [f"{lens.info.name} {lens.info.hash}" for lens in session.equipment.lenses],
        "label": session.origin.label,
        "tokenizer": about.tokenizer,
        "left_out": [f"{one.tensors} ({one.count})" for one in about.left_out],
        "adapters": [_adapter(one) for one in about.adapters],
        "hooks": [f"{one.kind} on {one.module or 'the model'}: {one.function}" for one in about.hooks],
    }
    return values


def _adapter(one: Adapter) -> str:
    """All that an adapter does to a model."""
    state = ("active" if one.active else "inactive") + (", merged" if one.merged else "")
    return f"{one.name} ({one.type}, scaling {one.scaling}, {state}, sha256 {one.digest})"


def _words(one: Asked) -> str:
    """A prompt as it was given, for the record of one that could not be made into tokens."""
    if isinstance(one.prompt, str):
        return one.prompt
    return json.dumps(one.prompt, ensure_ascii=False)


def _failed(count: int) -> str:
    return f"{count} failed" if count else ""


__all__ = ["Failure", "ManyReport", "StoreError", "capture_many"]
