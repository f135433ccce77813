"""`lens plan --prompts FILE`: what captures of all its prompts would take, and which would be refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnlens.capture.batch.asked import Asked, Defaults
from attnlens.capture.batch.file import read_prompts
from attnlens.capture.batch.launch import read_launch
from attnlens.capture.batch.many import check_store, plan_of
from attnlens.capture.batch.refusal import Refusal, going_on, refuse_if_none
from attnlens.capture.batch.run import refuse_single
from attnlens.capture.forecast.forecast import WITH_WEIGHTS
from attnlens.capture.forecast.model import (
    KEY_ROWS_HOLD,
    PlannedModel,
    check_options,
    first_pass,
    of_plan,
    open_model,
)
from attnlens.capture.forecast.sizes import ModeSize, mode_size
from attnlens.capture.plan import Plan
from attnlens.capture.run import CaptureOptions
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store.replacement import folder_for, mode_of, replaced_bytes


@dataclass(frozen=True, kw_only=True)
class RefusedPrompt:
    """A prompt that a capture would refuse: its id, where it stands, and why."""

    id: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"prompt {self.id} ({self.where}): {self.message}"


@dataclass(frozen=True, kw_only=True)
class PromptSize:
    """One capture: its tokens, how it keeps attention, and its bytes, raw and at least and most on disk."""

    id: str
    where: str
    n_prompt: int
    n_new: int
    attention: str
    raw_bytes: int
    disk_bytes: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ModeTotal:
    """All captures, with attention kept in one mode: bytes by array, their sum, and least and most on disk."""

    mode: str
    arrays: dict[str, int]
    raw_bytes: int
    disk_bytes: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ManyForecast:
    """What `lens plan --prompts` says. `raw_bytes` and `disk_bytes` are those of the modes that captures would take.

    `kept` are ids of prompts that are complete in the store with --resume; they are in no sum. `largest` is the prompt
    whose capture has the highest peak, and `memory` that peak, in bytes by place and part: one capture runs at a time.
    """

    model: str
    architecture: str
    dtype: str
    quantize: str | None
    n_parameters: int
    n_layer: int
    n_attending: int
    n_head: int
    prompts: list[PromptSize]
    refused: list[RefusedPrompt]
    kept: list[str]
    modes: list[ModeTotal]
    refused_modes: dict[str, str]
    largest: str | None
    memory: dict[str, dict[str, int]]
    lens_tokens: str
    replaced_bytes: int | None = None
    only_with_weights: list[str] = field(default_factory=lambda: list(WITH_WEIGHTS))

    @property
    def raw_bytes(self) -> int:
        """Bytes of all arrays that texts do not decide."""
        return sum(one.raw_bytes for one in self.prompts)

    @property
    def disk_bytes(self) -> tuple[int, int]:
        """Least and most on disk."""
        return _sum(one.disk_bytes for one in self.prompts)

    @property
    def attention(self) -> dict[str, int]:
        """Captures by how they keep attention."""
        return dict(Counter(one.attention for one in self.prompts))

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by place."""
        return {place: sum(parts.values()) for place, parts in self.memory.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, the sums included."""
        sums = ("raw_bytes", "disk_bytes", "attention", "peak")
        return {**vars(self), **{name: getattr(self, name) for name in sums}}


def forecast_many(options: CaptureOptions, progress: Progress) -> ManyForecast:
    """Works out what `lens capture --prompts` with these options takes.

    Raises:
        AttnlensError: what the capture would say of the file, the store or the model. What it would say of single
            prompts is in `refused`.
    """
    if options.prompts is None:
        raise InputError("no prompts; give them with --prompts FILE")
    refuse_single(options)
    check_options(options)
    mode = mode_of(overwrite=options.overwrite, append=options.append, resume=options.resume)
    defaults = Defaults(generation=options.generation, wording=options.wording)
    asked = read_prompts(options.prompts, defaults)
    kept = check_store(options.output, asked, options.settings, defaults, mode, read_launch())
    model = open_model(options, progress)
    plans, refused = _plans(model, [one for one in asked if one.id not in set(kept)], progress)
    records = model.records(model.short)
    prompts: list[PromptSize] = []
    sizes: dict[str, list[ModeSize]] = {name: [] for name in records}
    for one, plan in plans:
        by_mode = {name: _mode_size(about, plan, options) for name, about in records.items()}
        for name, size in by_mode.items():
            sizes[name].append(size)
        taken = by_mode[model.encoding(model.short, plan).mode]
        prompts.append(
            PromptSize(
                id=one.id,
                where=one.where,
                n_prompt=plan.n_prompt,
                n_new=plan.capacity - plan.n_prompt,
                attention=taken.mode,
                raw_bytes=taken.raw_bytes,
                disk_bytes=taken.disk_bytes,
            )
        )
    largest, memory = _largest(model, plans, records, progress)
    return ManyForecast(
        **model.told(model.short),
        prompts=prompts,
        refused=refused,
        kept=kept,
        modes=[_total(name, found) for name, found in sizes.items()],
        refused_modes=model.refused_modes(model.short),
        largest=largest,
        memory=memory,
        lens_tokens=options.lens_tokens,
        replaced_bytes=replaced_bytes(folder_for(options.output, mode), options.output),
    )


def _plans(
    model: PlannedModel, asked: Sequence[Asked], progress: Progress
) -> tuple[list[tuple[Asked, Plan]], list[RefusedPrompt]]:
    """What is to be captured of each prompt, and the prompts of which nothing can be."""
    model.encoding(model.short)  # refuses, for every prompt, what the model cannot give
    refuse_if_none(asked, lambda one: model.check_generation(one.generation, going_on(one, [0])))
    plans: list[tuple[Asked, Plan]] = []
    refused: list[RefusedPrompt] = []
    progress.stage("prompts", total=len(asked), unit="prompts")
    for one in asked:
        try:
            plan = plan_of(model.short.model, model.tokenizer, one)
            model.check_generation(one.generation, plan)
            model.encoding(model.short, plan)
            plans.append((one, plan))
        except Refusal as error:
            refused.append(RefusedPrompt(id=one.id, where=one.where, message=str(error)))
        progress.advance()
    return plans, refused


def _largest(
    model: PlannedModel, plans: Sequence[tuple[Asked, Plan]], records: dict[str, CaptureMetadata], progress: Progress
) -> tuple[str | None, dict[str, dict[str, int]]]:
    """The prompt with the highest peak, and its parts. Only prompts that none exceeds in both the tokens of their first
    pass and of the whole are run without weights: memory grows with either.
    """
    progress.stage("passes without weights")
    front: list[tuple[Asked, Plan]] = []
    longest = 0
    for one, plan in sorted(plans, key=lambda pair: (-first_pass(pair[1]), -pair[1].capacity)):
        if plan.capacity > longest:
            front.append((one, plan))
            longest = plan.capacity
    best: tuple[int, str | None, dict[str, dict[str, int]]] = (-1, None, {})
    for one, plan in front:
        about = records[model.encoding(model.short, plan).mode]
        memory = model.memory(model.sketch(first_pass(plan)), about, plan)
        peak = sum(sum(parts.values()) for parts in memory.values())
        if peak > best[0]:
            best = (peak, one.id, memory)
    return best[1], best[2]


def _mode_size(about: CaptureMetadata, plan: Plan, options: CaptureOptions) -> ModeSize:
    record = of_plan(about, plan, options.settings)
    return mode_size(record, capacity=plan.capacity, key_rows_hold=KEY_ROWS_HOLD)


def _total(mode: str, sizes: Sequence[ModeSize]) -> ModeTotal:
    arrays: Counter[str] = Counter()
    for size in sizes:
        arrays.update({array.name: array.raw_bytes for array in size.arrays if array.raw_bytes is not None})
    return ModeTotal(
        mode=mode,
        arrays=dict(arrays.most_common()),
        raw_bytes=sum(size.raw_bytes for size in sizes),
        disk_bytes=_sum(size.disk_bytes for size in sizes),
    )


def _sum(ranges: Iterable[tuple[int, int]]) -> tuple[int, int]:
    pairs = list(ranges)
    return sum(low for low, _ in pairs), sum(high for _, high in pairs)
