"""A model as it is known without weights, and the records that captures of it would begin with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import torch

from attnlens.capture.describe import plain, versions
from attnlens.capture.encoding import Encoding, choose_encoding, fed_again_at
from attnlens.capture.equipment import Equipment, Lens
from attnlens.capture.feeding import style_of
from attnlens.capture.forecast.memory import peak_memory
from attnlens.capture.forecast.sketch import Sketch, sketch
from attnlens.capture.hub_files import model_named
from attnlens.capture.lenses.choice import choose_lenses
from attnlens.capture.models.outline import Outline, outline
from attnlens.capture.models.quantize import require_bitsandbytes
from attnlens.capture.models.request import Request
from attnlens.capture.plan import Plan
from attnlens.capture.run import CaptureOptions
from attnlens.capture.sampling import Sampler
from attnlens.capture.settings import Generation, Settings
from attnlens.capture.tracked import tracked_ids
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError
from attnlens.schemas.metadata import CaptureMetadata, LensInfo, ModelInfo, ResidualInfo, Sampling
from attnlens.schemas.qk import unequal_shapes
from attnlens.store.layout import MIB

KEY_ROWS_HOLD = 64 * MIB
"""As the writer's default."""
SHORT = 8
"""Tokens of a pass that shows what does not depend on the length."""


def check_options(options: CaptureOptions) -> None:
    """Refuses numbers that a capture would refuse before it looks at anything else.

    Raises:
        InputError: as said.
    """
    if options.buffer_mib < 1:
        raise InputError(f"--buffer is {options.buffer_mib} MiB, expected 1 or more")
    options.settings.check()
    options.generation.check()
    options.wording.check()


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A model without weights, and the options of a capture of it. `short`: what a few tokens show."""

    options: CaptureOptions
    found: Outline
    short: Sketch

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, which is real."""
        return self.found.tokenizer

    def check_generation(self, generation: Generation, plan: Plan) -> None:
        """Refuses what a capture would refuse of the generation settings.

        Raises:
            InputError: a setting that was given cannot be used.
            ModelError: the model's own ask for something that is not done here.
        """
        if plan.given is None and plan.max_new_tokens > 0:
            Sampler(self.short.model, self.tokenizer, generation, plan.prompt.ids, torch.device("cpu"))

    def sketch(self, n_token: int) -> Sketch:
        """What a first pass over `n_token` tokens shows."""
        return sketch(self.found.config, self.found.dtype, n_token, trust_remote_code=self.options.trust_remote_code)

    def refused_modes(self, seen: Sketch) -> dict[str, str]:
        """Encodings of attention that this model's cannot be kept in, and why."""
        why = unequal_shapes(seen.table) or seen.only_dense
        return {} if why is None else {"qk": why}

    def encoding(self, seen: Sketch, plan: Plan | None = None) -> Encoding:
        """How attention of a text would be kept (None: of a single token).

        Raises:
            ModelError: it cannot be kept in the way that was asked for.
        """
        likeness: Any = SimpleNamespace(
            table=seen.table, qk_refusal=self.refused_modes(seen).get("qk"), vector_dtype=_name(self.found.dtype)
        )
        wish, model = self.options.attention, seen.model
        again = fed_again_at(model, style_of(model), plan, wish) if plan is not None else None
        return choose_encoding(wish, likeness, plan.capacity if plan is not None else 1, type(model).__name__, again)

    def records(self, seen: Sketch) -> dict[str, CaptureMetadata]:
        """The record of a capture of no prompt yet, by the encodings that the model can have."""
        refused = self.refused_modes(seen)
        equipment = _equipment(self.options.settings, self.found, seen, _name(self.found.dtype))
        return {mode: self._record(mode, seen, equipment) for mode in ("dense", "qk") if mode not in refused}

    def _record(self, mode: str, seen: Sketch, equipment: Equipment) -> CaptureMetadata:
        dtype = _name(self.found.dtype)
        generation = self.options.generation
        return CaptureMetadata.model_validate(
            {
                "id": "0000",
                "status": "planned",
                "committed": 0,
                "n_prompt": 1,
                "n_token": 1,
                "n_fed": 0,
                "prompt": "",
                "attention": mode,
                "attention_dtype": dtype if mode == "qk" else None,
                "model": ModelInfo(
                    id=self.found.id,
                    architecture=type(seen.model).__name__,
                    config=plain(self.found.config.to_dict()),
                    dtype=dtype,
                    n_layer=len(seen.table),
                    n_head=max(layer.n_head for layer in seen.table),
                    vocabulary_size=seen.vocabulary_size,
                    layers=list(seen.table),
                ),
                "sampling": Sampling(
                    forced=False,
                    max_new_tokens=generation.max_new_tokens,
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

    def memory(self, seen: Sketch, about: CaptureMetadata, plan: Plan) -> dict[str, dict[str, int]]:
        """Parts of the peak, by place. `seen` is of the plan's first pass."""
        device = self.options.device
        return peak_memory(
            seen,
            of_plan(about, plan, self.options.settings),
            dtype=self.found.dtype,
            stored=self.found.stored,
            quantize=self.options.quantize,
            n_first=first_pass(plan),
            capacity=plan.capacity,
            buffer_bytes=self.options.settings.buffer_bytes,
            key_rows_hold=KEY_ROWS_HOLD,
            on_gpu=device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()),
        )

    def told(self, seen: Sketch) -> dict[str, Any]:
        """What a page says of the model."""
        return {
            "model": self.found.id,
            "architecture": type(seen.model).__name__,
            "dtype": _name(self.found.dtype),
            "quantize": self.options.quantize,
            "n_parameters": sum(w.numel() for w in {id(w): w for w in seen.model.parameters()}.values()),
            "n_layer": len(seen.table),
            "n_attending": sum(layer.kind != "none" for layer in seen.table),
            "n_head": max(layer.n_head for layer in seen.table),
        }


def open_model(options: CaptureOptions, progress: Progress) -> PlannedModel:
    """Reads configuration and tokenizer, and runs a few tokens without weights.

    Raises:
        AttnlensError: what a capture would say of the model and its generation settings.
    """
    name, revision = model_named(options.model, options.revision)
    request = Request(
        name,
        options.dtype,
        options.device,
        options.quantize,
        options.trust_remote_code,
        revision,
        tokenizer=options.tokenizer,
    )
    require_bitsandbytes(request)
    progress.stage("configuration and tokenizer")
    found = outline(request)
    short = sketch(found.config, found.dtype, SHORT, trust_remote_code=options.trust_remote_code)
    short.model.generation_config = found.generation or short.model.generation_config
    return PlannedModel(options=options, found=found, short=short)


def first_pass(plan: Plan) -> int:
    """Tokens that the first pass is over."""
    return plan.n_prompt + len(plan.given or ())


def of_plan(about: CaptureMetadata, plan: Plan, settings: Settings) -> CaptureMetadata:
    """A record with what a plan decides of its arrays: the lengths, and where lenses begin to read."""
    return about.model_copy(
        update={
            "n_prompt": plan.n_prompt,
            "n_token": plan.n_prompt,
            "prompt": plan.prompt.text,
            "lens_first": settings.lens_first(plan.n_prompt) if about.lens else 0,
        }
    )


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


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
