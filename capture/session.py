"""A model made ready once, to be captured any number of times."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnlens.capture.changes import changes_of, unwrapped
from attnlens.capture.describe import device_name, model_info, versions
from attnlens.capture.encoding import choose_encoding, fed_again_at
from attnlens.capture.equipment import Equipment, equip
from attnlens.capture.evidence import ROW_SUM_LIMIT
from attnlens.capture.failure import named
from attnlens.capture.forward import input_device
from attnlens.capture.generation import check_vocabulary
from attnlens.capture.memory import return_freed_memory
from attnlens.capture.origin import Origin
from attnlens.capture.parallel import Parallel, on_first, parallel_of
from attnlens.capture.passes import Passes
from attnlens.capture.plan import Plan
from attnlens.capture.precision import full_precision
from attnlens.capture.probe import Probed, probe
from attnlens.capture.prompt import Prompt
from attnlens.capture.rope import reset_rope
from attnlens.capture.sampling import Sampler
from attnlens.capture.settings import Generation, Settings
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress
from attnlens.schemas.errors import AttnlensError, Interrupted, ModelError, StoreError
from attnlens.schemas.metadata import CaptureMetadata, ModelInfo, Sampling, SelfCheck
from attnlens.store.batch import BatchWriter
from attnlens.store.writer import CaptureWriter, StoreWriter, write_heads


@dataclass(frozen=True, kw_only=True)
class CaptureReport:
    """What a capture did. `completion` is the generated (or given) text; `seconds` is the whole capture's."""

    path: Path
    capture_id: str
    n_prompt: int
    n_token: int
    n_fed: int
    completion: str
    seconds: float
    bytes_written: int
    attention: str = "dense"
    attention_choice: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A probed model in eval mode with its record, ready for any number of texts. Made by `open_session`."""

    model: nn.Module
    tokenizer: Any
    settings: Settings
    origin: Origin
    device: torch.device
    probed: Probed
    vocabulary: Vocabulary
    model_info: ModelInfo
    equipment: Equipment
    parallel: Parallel | None = None

    def sampler(self, generation: Generation, plan: Plan) -> Sampler | None:
        """The chooser of tokens after a prompt; None where none are chosen: the text is given, or ends there.

        Raises:
            InputError: a generation setting that was given cannot be used.
            ModelError: the model's generation settings ask for something that is not done here.
        """
        if plan.given is not None or plan.max_new_tokens < 1:
            return None
        generation = replace(generation, max_new_tokens=plan.max_new_tokens)
        sampler = Sampler(self.model, self.tokenizer, generation, plan.prompt.ids, self.device)
        check_vocabulary(sampler.settings, generation.overrides, self.probed.vocabulary_size)
        return sampler

    def metadata(
        self,
        capture_id: str,
        plan: Plan,
        generation: Generation,
        prompt_id: str | None = None,
        sampler: Sampler | None = None,
    ) -> CaptureMetadata:
        """What is known of a capture before it begins. `sampler`: what chooses its tokens, if anything does.

        Raises:
            ModelError: attention cannot be kept in the way that was asked for.
        """
        encoding = choose_encoding(
            self.settings.attention,
            self.probed,
            plan.capacity,
            self.model_info.architecture,
            fed_again_at(self.model, self.probed.style, plan, self.settings.attention),
        )
        return CaptureMetadata(
            id=capture_id,
            prompt_id=prompt_id,
            status="planned",
            committed=0,
            n_prompt=plan.n_prompt,
            n_token=plan.n_prompt,
            n_fed=0,
            prompt=plan.prompt.text,
            messages=plan.prompt.messages,
            tools=plan.prompt.tools,
            continued=plan.prompt.continued,
            seam=plan.seam,
            label=self.origin.label,
            notes=[*self.probed.notes, *plan.notes],
            attention=encoding.mode,
            attention_dtype=self.probed.vector_dtype if encoding.mode == "qk" else None,
            attention_choice=encoding.choice,
            model=self.model_info,
            **self.equipment.metadata(),
            lens_first=self.settings.lens_first(plan.n_prompt) if self.equipment.lenses else 0,
            sampling=Sampling(
                forced=plan.given is not None,
                max_new_tokens=plan.max_new_tokens,
                temperature=float(generation.temperature),
                top_p=float(generation.top_p),
                seed=generation.seed,
                generation_config=sampler.settings if sampler is not None else {},
                overrides=dict(generation.overrides),
            ),
            versions=versions(),
            device=device_name(self.device),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            self_checks=[*self.probed.checks, *self.equipment.checks],
        )

    def failed(self, capture_id: str, prompt_id: str, words: str, generation: Generation) -> CaptureMetadata:
        """The record of a prompt, `words` as they were given, that could not be made into tokens."""
        plan = Plan(prompt=Prompt(words, []), given=None, max_new_tokens=generation.max_new_tokens)
        return self.metadata(capture_id, plan, generation, prompt_id)

    def capture(
        self,
        plan: Plan,
        generation: Generation,
        writer: StoreWriter | BatchWriter | None,
        capture_id: str,
        progress: Progress,
        *,
        prompt_id: str | None = None,
        started: float | None = None,
    ) -> CaptureReport:
        """Runs the model over one text and writes it as capture `capture_id`.

        `writer` is None on all but the first of the processes that hold the model.

        Raises:
            ModelError: the model cannot be captured truthfully on this text.
            StoreError: the store cannot be written.
            Interrupted: Ctrl-C; what was committed is kept.
        """
        started = time.perf_counter() if started is None else started
        return_freed_memory()
        reset_rope(self.model)
        sampler = self.sampler(generation, plan)
        path, metadata = self._place(writer, self.metadata(capture_id, plan, generation, prompt_id, sampler))
        place = writer.place if writer is not None else path
        rows: CaptureWriter | None = None
        with torch.no_grad():
            try:
                with self._begin(writer, path, metadata, plan.capacity) as rows, self._in_one_line(path):
                    passes = Passes(
                        self.model,
                        plan,
                        self.probed,
                        self.vocabulary,
                        rows,
                        sampler,
                        self.device,
                        progress,
                        equipment=self.equipment,
                        parallel=self.parallel,
                    )
                    passes.run()
                    progress.stage("writing")
                    completion = _decoded(self.tokenizer, passes.generated)
                    learnt = _learnt(metadata, passes, completion, time.perf_counter() - started)
                    learnt["notes"] = [*self.probed.notes, *passes.notes]
                    rows.finish(learnt)
            except KeyboardInterrupt:
                raise Interrupted(_kept(path, rows.metadata if rows is not None else metadata)) from None
        return CaptureReport(
            path=place,
            capture_id=metadata.id,
            n_prompt=plan.n_prompt,
            n_token=passes.n_token,
            n_fed=passes.seen,
            completion=completion,
            seconds=time.perf_counter() - started,
            bytes_written=rows.bytes_written,
            attention=metadata.attention or "none",
            attention_choice=metadata.attention_choice,
            notes=learnt["notes"],
        )

    @contextmanager
    def _in_one_line(self, path: Path) -> Iterator[None]:
        """Whatever code of a model, its tokenizer or its hooks raises becomes one line that names the model.

        Not where several processes hold the model: the others wait for one that has left their common order.

        Raises:
            ModelError: as said; the cause is chained.
            StoreError: the system refuses something to the store at `path`.
        """
        try:
            yield
        except AttnlensError:
            raise
        except OSError as error:
            raise StoreError(f"cannot write {path}: {named(error)}") from error
        except Exception as error:
            if self.parallel is not None:
                raise
            raise ModelError(f"{type(self.model).__name__}: {named(error)}") from error

    def _place(
        self, writer: StoreWriter | BatchWriter | None, metadata: CaptureMetadata
    ) -> tuple[Path, CaptureMetadata]:
        """Path of the store, and the capture's record: those of the first process, where there are several."""
        path = writer.path if writer is not None else Path()
        return (path, metadata) if self.parallel is None else self.parallel.told((path, metadata))

    def _begin(
        self, writer: StoreWriter | BatchWriter | None, path: Path, metadata: CaptureMetadata, capacity: int
    ) -> CaptureWriter:
        """The capture, begun by the first process and joined by the others."""
        buffer_bytes = self.settings.buffer_bytes
        share = self.parallel.share if self.parallel is not None else None

        def begin() -> CaptureWriter:
            assert writer is not None
            return writer.capture(metadata, capacity=capacity, buffer_bytes=buffer_bytes, share=share)

        rows = on_first(self.parallel, begin)
        if rows is None:
            assert share is not None
            rows = write_heads(path, metadata, share, capacity=capacity, buffer_bytes=buffer_bytes)
        return rows


@contextmanager
def open_session(
    model: nn.Module,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    settings: Settings,
    progress: Progress,
    *,
    origin: Origin | None = None,
) -> Iterator[Session]:
    """Puts the model into eval mode and probes it on the first of `prompt_ids`; leaves it as it was found.

    Products of float32 are full ones for as long, and not in TF32.

    Nothing is written: a model that cannot be captured leaves no trace.

    Raises:
        ModelError: the model cannot be captured truthfully.
    """
    return_freed_memory()
    reset_rope(model)
    origin = origin or Origin()
    parallel = parallel_of(model)
    changes = changes_of(model, origin)  # before anything of ours is on the model
    with _evaluating(model), full_precision():
        progress.stage("probe")
        device = input_device(model)
        prompt = torch.tensor(list(prompt_ids), device=device)
        with torch.no_grad():
            probed = probe(model, prompt, lens=settings.lens)
            vocabulary = Vocabulary(tokenizer, probed.vocabulary_size)
            if parallel is not None:
                probed = parallel.whole(probed, model)
            equipment = equip(model, probed, prompt, settings, tokenizer, vocabulary, parallel)
        yield Session(
            model=model,
            tokenizer=tokenizer,
            settings=settings,
            origin=origin,
            device=device,
            probed=probed,
            vocabulary=vocabulary,
            model_info=model_info(model, probed, name=origin.id or _name_of(model), origin=origin, changes=changes),
            equipment=equipment,
            parallel=parallel,
        )


def _learnt(metadata: CaptureMetadata, passes: Passes, completion: str, seconds: float) -> dict[str, Any]:
    """What is known of a capture only when it is over."""
    row_sums = SelfCheck(name="capture: row sums", passed=True, value=passes.worst_row_sum, limit=ROW_SUM_LIMIT)
    timings = {**passes.timings, "total_s": seconds}
    return {
        "completion": completion,
        "model": metadata.model.model_copy(update={"layers": passes.table}),
        "timings": {name: round(value, 3) for name, value in timings.items()},
        "self_checks": [*metadata.self_checks, row_sums],
    }


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""
    return text.encode("utf-8", "replace").decode("utf-8")


def _kept(store: Path, metadata: CaptureMetadata) -> str:
    """What an interrupted capture leaves."""
    if metadata.committed == 0:
        return f"interrupted before the first rows were safe: nothing of capture {metadata.id} is kept in {store}"
    return (
        f"interrupted: {metadata.committed} rows of capture {metadata.id} are kept in {store}, marked partial; "
        "`lens info` and `lens render` read them"
    )


def _name_of(model: nn.Module) -> str:
    """Hub name of a model as transformers recorded it; the last part where it is a path on this machine."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(unwrapped(model)).__name__)
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {id(module): module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module in model.modules():
            module.training = training.get(id(module), module.training)
