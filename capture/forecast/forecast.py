"""`lens plan`: what a capture with these options would take and whether it would be refused. No weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import torch

from attnlens.capture.describe import plain, versions
from attnlens.capture.encoding import choose_encoding
from attnlens.capture.equipment import Equipment, Lens
from attnlens.capture.forecast.memory import peak_memory
from attnlens.capture.forecast.sizes import ModeSize, mode_size
from attnlens.capture.forecast.sketch import Sketch, sketch
from attnlens.capture.lenses.choice import choose_lenses
from attnlens.capture.models.outline import Outline, outline
from attnlens.capture.models.quantize import require_bitsandbytes
from attnlens.capture.models.request import Request
from attnlens.capture.plan import Plan, plan_capture, read_prompt
from attnlens.capture.run import CaptureOptions, prompt_of
from attnlens.capture.sampling import Sampler
from attnlens.capture.settings import Generation, Settings
from attnlens.capture.tracked import tracked_ids
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError
from attnlens.schemas.metadata import CaptureMetadata, LensInfo, ModelInfo, ResidualInfo, Sampling
from attnlens.schemas.qk import unequal_shapes
from attnlens.store.layout import MIB
from attnlens.store.writer import StoreWriter

KEY_ROWS_HOLD = 64 * MIB
"""As the writer's default."""
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

    Memory is in bytes, by place ("host", "device") and part.
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
    if options.buffer_mib < 1:
        raise InputError(f"--buffer is {options.buffer_mib} MiB, expected 1 or more")
    settings, generation = options.settings, options.generation
    settings.check()
    generation.check()
    text, token_ids = prompt_of(options)
    StoreWriter.create(options.output, overwrite=options.overwrite, append=options.append)  # checks, writes nothing
    request = Request(
        options.model,
        options.dtype,
        options.device,
        options.quantize,
        options.trust_remote_code,
        options.revision,
    )
    require_bitsandbytes(request)
    progress.stage("configuration and tokenizer")
    found = outline(request)
    progress.stage("a pass without weights")
    prompt = read_prompt(found.tokenizer, text, system=options.system, raw=options.raw)
    short = sketch(found.config, found.dtype, 8, trust_remote_code=options.trust_remote_code)
    short.model.generation_config = found.generation or short.model.generation_config
    plan = plan_capture(short.model, found.tokenizer, prompt, options.completion, token_ids, generation.max_new_tokens)
    first = plan.n_prompt + len(plan.given or ())
    seen = sketch(found.config, found.dtype, first, trust_remote_code=options.trust_remote_code)
    Sampler(
        short.model,
        temperature=generation.temperature,
        top_p=generation.top_p,
        seed=generation.seed,
        n_prompt=plan.n_prompt,
        device=torch.device("cpu"),
    )
    return _forecast(options, settings, generation, found, seen, plan, first)


def _forecast(
    options: CaptureOptions,
    settings: Settings,
    generation: Generation,
    found: Outline,
    seen: Sketch,
    plan: Plan,
    first: int,
) -> Forecast:
    modes: list[ModeSize] = []
    refused: dict[str, str] = {}
    about: CaptureMetadata | None = None
    for mode in ("qk", "dense"):
        why = (unequal_shapes(seen.table) or seen.only_dense) if mode == "qk" else None
        if why is not None:
            refused[mode] = why
            continue
        about = _metadata(mode, settings, generation, found, seen, plan)
        modes.insert(0, mode_size(about, capacity=plan.capacity, key_rows_hold=KEY_ROWS_HOLD))
    assert about is not None
    likeness: Any = SimpleNamespace(table=seen.table, qk_refusal=refused.get("qk"), vector_dtype=about.model.dtype)
    encoding = choose_encoding(settings.attention, likeness, plan.capacity, type(seen.model).__name__)
    on_gpu = options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())
    memory = peak_memory(
        seen,
        about,
        dtype=found.dtype,
        quantize=options.quantize,
        n_first=first,
        capacity=plan.capacity,
        buffer_bytes=settings.buffer_bytes,
        key_rows_hold=KEY_ROWS_HOLD,
        on_gpu=on_gpu,
    )
    return Forecast(
        model=found.id,
        architecture=type(seen.model).__name__,
        dtype=str(found.dtype).removeprefix("torch."),
        quantize=options.quantize,
        n_parameters=sum(weight.numel() for weight in {id(w): w for w in seen.model.parameters()}.values()),
        n_prompt=plan.n_prompt,
        n_new=plan.capacity - plan.n_prompt,
        capacity=plan.capacity,
        n_layer=len(seen.table),
        n_attending=sum(layer.kind != "none" for layer in seen.table),
        n_head=max(layer.n_head for layer in seen.table),
        attention=encoding.mode,
        attention_choice=encoding.choice,
        modes=modes,
        refused_modes=refused,
        memory=memory,
    )


def _metadata(
    mode: str, settings: Settings, generation: Generation, found: Outline, seen: Sketch, plan: Plan
) -> CaptureMetadata:
    """The metadata that a capture would begin with: from it follows which arrays there are, and their shapes."""
    dtype = cast(Any, str(found.dtype).removeprefix("torch."))
    equipment = _equipment(settings, found, seen, dtype)
    return CaptureMetadata.model_validate(
        {
            "id": "0000",
            "status": "planned",
            "committed": 0,
            "n_prompt": plan.n_prompt,
            "n_token": plan.n_prompt,
            "n_fed": 0,
            "prompt": plan.prompt.text,
            "attention": mode,
            "attention_dtype": dtype if mode == "qk" else None,
            "model": ModelInfo(
                id=found.id,
                architecture=type(seen.model).__name__,
                config=plain(found.config.to_dict()),
                dtype=dtype,
                n_layer=len(seen.table),
                n_head=max(layer.n_head for layer in seen.table),
                vocabulary_size=seen.vocabulary_size,
                layers=list(seen.table),
            ),
            "sampling": Sampling(
                forced=plan.given is not None,
                max_new_tokens=plan.max_new_tokens,
                temperature=float(generation.temperature),
                top_p=float(generation.top_p),
                seed=generation.seed,
            ),
            "versions": versions(),
            "device": "",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **equipment.metadata(),
        }
    )


def _equipment(settings: Settings, found: Outline, seen: Sketch, dtype: Any) -> Equipment:
    """What the run would keep beyond attention, if the model gives all that was asked for."""
    streams = seen.stream_width is not None
    lenses = []
    if settings.lens and streams:
        top_k = min(settings.top_k, seen.vocabulary_size)
        for choice in choose_lenses(settings.lenses):
            info = LensInfo(name=choice.name, modules=[], hash="", top_k=top_k)
            lenses.append(Lens(info=info, tail=cast(Any, None)))
    tracked = tracked_ids(settings.track, found.tokenizer, Vocabulary(found.tokenizer, seen.vocabulary_size))
    attending = {layer.index: torch.empty(0) for layer in seen.table if layer.value_features}
    return Equipment(
        lenses=lenses,
        lens_absent=None if lenses else "several residual streams" if not streams else "not asked for",
        tracked=tracked,
        residual=ResidualInfo(n_feature=seen.stream_width or 1, dtype=dtype)
        if settings.residuals and streams
        else None,
        grams=attending if settings.value_norm else {},
        midpoints=dict.fromkeys(attending, "") if settings.lens_points == "all" and lenses else {},
    )
