"""`lens plan`: what a capture with these options would take and whether it would be refused. No weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from attnlens.capture.forecast.model import KEY_ROWS_HOLD, check_options, first_pass, of_plan, open_model
from attnlens.capture.forecast.sizes import ModeSize, mode_size
from attnlens.capture.plan import plan_capture, read_prompt
from attnlens.capture.run import CaptureOptions, prompt_of
from attnlens.progress import Progress
from attnlens.store.replacement import replaced_bytes
from attnlens.store.writer import StoreWriter

WITH_WEIGHTS = (
    "that the tap changes no logits, and rows sum to 1",
    "whether a logit lens fits the model (taken to fit here)",
    "whether values have one output projection, for value_norm (taken to be so)",
    "that the checkpoint is whole, and fits its configuration",
    "where the text ends before max_new_tokens",
)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What `lens plan` says. `attention` is the mode that the capture would take.

    Memory is in bytes, by place ("host", "device") and part. Lenses read the tokens from `lens_first` on.
    """

    model: str
    architecture: str
    dtype: str
    quantize: str | None
    n_parameters: int
    n_prompt: int
    n_new: int
    capacity: int
    n_layer: int
    n_attending: int
    n_head: int
    attention: str
    attention_choice: str | None
    modes: list[ModeSize]
    refused_modes: dict[str, str]
    memory: dict[str, dict[str, int]]
    notes: list[str] = field(default_factory=list)
    lens_first: int = 0
    replaced_bytes: int | None = None
    """Of the store that stays until this one is complete."""
    only_with_weights: list[str] = field(default_factory=lambda: list(WITH_WEIGHTS))

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by place."""
        return {place: sum(parts.values()) for place, parts in self.memory.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, the sums included."""
        return {**vars(self), "peak": self.peak}


def forecast(options: CaptureOptions, progress: Progress) -> Forecast:
    """Works out what `lens capture` with these options takes.

    Raises:
        AttnlensError: what the capture would say, as far as it can be known without weights.
    """
    check_options(options)
    text, token_ids = prompt_of(options)
    writer = StoreWriter.create(  # checks, writes nothing
        options.output, overwrite=options.overwrite, append=options.append, resume=options.resume
    )
    model = open_model(options, progress)
    progress.stage("a pass without weights")
    prompt = read_prompt(model.tokenizer, text, options.wording)
    plan = plan_capture(
        model.short.model,
        model.tokenizer,
        prompt,
        options.completion,
        token_ids,
        options.max_new_tokens,
        options.wording,
    )
    model.check_generation(options.generation, plan)
    first = first_pass(plan)
    seen = model.sketch(first)
    records = model.records(seen)
    modes = [
        mode_size(of_plan(about, plan, options.settings), capacity=plan.capacity, key_rows_hold=KEY_ROWS_HOLD)
        for about in records.values()
    ]
    encoding = model.encoding(seen, plan)
    return Forecast(
        **model.told(seen),
        n_prompt=plan.n_prompt,
        n_new=plan.capacity - plan.n_prompt,
        capacity=plan.capacity,
        attention=encoding.mode,
        attention_choice=encoding.choice,
        modes=modes,
        refused_modes=model.refused_modes(seen),
        memory=model.memory(seen, records[encoding.mode], plan),
        notes=plan.notes_before(),
        lens_first=options.settings.lens_first(plan.n_prompt) if records[encoding.mode].lens else 0,
        replaced_bytes=replaced_bytes(writer.path, writer.place),
    )
