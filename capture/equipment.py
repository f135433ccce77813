"""What a run keeps beyond attention: lenses, tracked tokens, residuals, value norms, each found out before it begins.

What a model cannot give is absent with the reason, unless it was asked for by name: then it is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.forward import attempt
from attnlens.capture.lenses.choice import LOGIT, choose_lenses
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.lenses.reader import LaneReader, depth_names, mid_names
from attnlens.capture.lenses.tuned import Translators, check_fit, read_tuned_lens
from attnlens.capture.midpoint import find_midpoints
from attnlens.capture.override import eager_configuration
from attnlens.capture.parallel import Parallel
from attnlens.capture.probe import Probed, probe_ids
from attnlens.capture.projection import find_projections
from attnlens.capture.residual import LayerTracker
from attnlens.capture.residual_evidence import residual_info
from attnlens.capture.settings import Settings
from attnlens.capture.tracked import tracked_ids
from attnlens.capture.vocabulary import Vocabulary
from attnlens.schemas.arrays import MID, TRACKED
from attnlens.schemas.errors import ModelError, Setting
from attnlens.schemas.metadata import LensInfo, ResidualInfo, SelfCheck


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A lens that fits the model: its record, the model's tail, and what is put before it."""

    info: LensInfo
    tail: LogitLens
    translators: Translators | None = None


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What one model gives, and what was asked for. The first of `lenses` has the plain names in the store."""

    lenses: list[Lens] = field(default_factory=list)
    lens_absent: str | None = None
    tracked: list[int] = field(default_factory=list)
    tracked_texts: list[str] = field(default_factory=list)
    residual: ResidualInfo | None = None
    grams: Mapping[int, Tensor] = field(default_factory=dict)
    midpoints: Mapping[int, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    checks: list[SelfCheck] = field(default_factory=list)

    def metadata(self) -> dict[str, Any]:
        """Fields of a capture's metadata."""
        infos = [lens.info for lens in self.lenses]
        evidence = []
        if self.grams:
            evidence.append("value_norm")
        if self.residual is not None:
            evidence.append("residual")
        if self.tracked:
            evidence.extend(TRACKED)
        if self.midpoints:
            evidence.extend(MID.values())
        return {
            "lens": infos[0] if infos else None,
            "lens_absent": None if infos else self.lens_absent,
            "lenses": infos[1:],
            "evidence": evidence,
            "absent": self.absent,
            "tracked": self.tracked,
            "residual": self.residual,
        }

    def depth_readers(self, n_layer: int) -> list[LaneReader]:
        """What reads the streams between layers."""
        return [
            LaneReader(
                lens=lens.tail,
                lanes=range(n_layer + 1),
                names=depth_names(None if place == 0 else lens.info.name, tracked=bool(self.tracked)),
                top_k=lens.info.top_k,
                translators=lens.translators,
                tracked=torch.tensor(self.tracked) if self.tracked else None,
            )
            for place, lens in enumerate(self.lenses)
        ]

    def inside_reader(self) -> LaneReader | None:
        """What reads the streams inside the layers."""
        if not self.midpoints:
            return None
        lens = next(lens for lens in self.lenses if lens.info.name == LOGIT)
        return LaneReader(lens=lens.tail, lanes=sorted(self.midpoints), names=mid_names(), top_k=lens.info.top_k)


def equip(
    model: nn.Module,
    probed: Probed,
    prompt: Tensor,
    settings: Settings,
    tokenizer: Any,
    vocabulary: Vocabulary,
    parallel: Parallel | None = None,
) -> Equipment:
    """Finds out what the model can give of what `settings` ask for; `prompt` int64 (token) is tried out on it.

    Raises:
        InputError: a lens does not fit the model, or a text to track is no token.
        ModelError: the model cannot give what was asked for by name.
    """
    name = type(model).__name__
    ids = probe_ids(model, prompt)
    tracked = tracked_ids(settings.track, tokenizer, vocabulary)
    if probed.lens is None and (tracked or settings.lenses != (LOGIT,)) and settings.lens:
        asked = (Setting("lenses"), " or ", Setting("track"))
        raise ModelError(f"{name}: no lens can read it, as ", *asked, f" would need: {probed.lens_absent}")
    absent: dict[str, str] = {}
    checks: list[SelfCheck] = []
    grams: Mapping[int, Tensor] = {}
    if settings.value_norm:
        try:
            found = find_projections(
                model, probed.path, probed.layers, ids, probed.style, parallel.total if parallel else None
            )
            grams, checks = found.grams, [found.check]
        except ModelError as refusal:
            absent["value_norm"] = str(refusal)
    residual = None
    if settings.residuals or settings.tuned:
        residual = _residual(model, probed, ids)
    lenses = _lenses(probed, settings, residual)
    midpoints: Mapping[int, str] = {}
    if settings.lens_points == "all":
        if not any(lens.info.name == LOGIT for lens in lenses):
            points = Setting("lens_points='all'", "--lens-points all")
            raise ModelError(f"{name}: no logit lens can read it, as ", points, f" would need: {probed.lens_absent}")
        try:
            midpoints = find_midpoints(model, probed.path, probed.layers, ids, probed.style)
        except ModelError as refusal:
            absent["mid"] = str(refusal)
    return Equipment(
        lenses=lenses,
        lens_absent=probed.lens_absent,
        tracked=tracked,
        tracked_texts=vocabulary.texts(tracked),
        residual=residual if settings.residuals else None,
        grams=grams,
        midpoints=midpoints,
        absent=absent,
        checks=checks,
    )


def _residual(model: nn.Module, probed: Probed, ids: Tensor) -> ResidualInfo:
    streams: dict[int, Tensor] = {}
    tracker = LayerTracker(probed.path, probed.layers, lambda depth, stream: streams.__setitem__(depth, stream))
    with tracker, eager_configuration(model):
        tracker.begin(ids.shape[1])
        attempt(model, ids, probed.style, last=1)
        tracker.end()
    return residual_info(list(streams.values()))


def _lenses(probed: Probed, settings: Settings, residual: ResidualInfo | None) -> list[Lens]:
    if probed.lens is None or not settings.lens:
        return []
    return fit_lenses(
        settings.lenses,
        probed.lens,
        top_k=settings.top_k,
        n_layer=len(probed.layers),
        n_feature=residual.n_feature if residual else 0,
    )


def fit_lenses(
    wanted: Sequence[str], tail: LogitLens, *, top_k: int, n_layer: int, n_feature: int, taken: Sequence[str] = ()
) -> list[Lens]:
    """The lenses that texts name, with the model's own tail, each checked against it.

    Raises:
        InputError: there is no such lens, or it was not made for this model.
    """
    plain = tail.info(min(top_k, tail.vocabulary_size))
    lenses = []
    for choice in choose_lenses(wanted, taken):
        if choice.folder is None:
            lenses.append(Lens(info=plain, tail=tail))
            continue
        translators, config = read_tuned_lens(choice.folder)
        head = tail.modules[-1]
        check_fit(choice.folder, translators, config, head=head, n_layer=n_layer, n_feature=n_feature)
        info = plain.model_copy(
            update={
                "name": choice.name,
                "source": choice.source or translators.source,
                "hash": translators.hash(plain.hash),
            }
        )
        lenses.append(Lens(info=info, tail=tail, translators=translators))
    return lenses
