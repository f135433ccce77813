"""`lens relens`: another lens for a store that kept its residuals. The model gives its tail, and is not run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnlens.capture.equipment import Lens, fit_lenses
from attnlens.capture.forward import input_device
from attnlens.capture.lenses.choice import LOGIT, choose_lenses, read_config
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.models import load
from attnlens.capture.precision import full_precision
from attnlens.capture.probe import probe
from attnlens.capture.reread import read_again, residuals
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError, ModelError
from attnlens.schemas.metadata import CaptureMetadata, LensInfo
from attnlens.store.reader import Capture, open_store
from attnlens.store.tools.extend import check_extendable, extend_capture, extending

COMPARED = 64
LIMIT = {"float32": 1e-3, "float64": 1e-3}
HALF_LIMIT = 2e-2
"""How far the tail's reading of depth L may be from the model's own output when the capture was made."""


@dataclass(frozen=True, kw_only=True)
class RelensOptions:
    """The options of `lens relens`, named as there."""

    store: Path
    lenses: tuple[str, ...]
    model: str | None = None
    capture: str | None = None
    dtype: str | None = None
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    top_k: int = 5


@dataclass(frozen=True, kw_only=True)
class RelensReport:
    """What was added: capture → names of its new lenses. A capture that had all of them is not named."""

    store: Path
    added: dict[str, list[str]]


def relens(options: RelensOptions, progress: Progress) -> RelensReport:
    """Reads the residuals of a store through further lenses and adds what they say.

    A further lens reads the tokens that the capture's first one read (from `lens_first` on), the first one of a capture
    every token; of a cropped capture, what was kept. A capture that has a lens already stays as it is: the same command
    goes on where one that was killed stopped.

    Raises:
        InputError: the store keeps no residuals, or a lens is unknown, there already, or does not fit.
        ModelError: the model is not the one that was captured.
        StoreError: the store is damaged or the disk refuses; it is as it was.
    """
    if not options.lenses:
        raise InputError("which lens? Give --lens tuned:FOLDER, or --lens logit")
    open_store(options.store)
    with extending(options.store):
        return _relens(options, progress)


def _relens(options: RelensOptions, progress: Progress) -> RelensReport:
    store = open_store(options.store)
    captures = [store[options.capture]] if options.capture is not None else list(store)
    if not captures:
        raise InputError(f"{options.store} has no captures")
    _check(captures, options)
    about = captures[0].metadata.model
    if any(capture.metadata.model != about for capture in captures):
        raise InputError(f"the captures of {options.store} are of different models: name one with --capture")
    loaded = load(
        options.model or about.id,
        dtype=options.dtype or (about.dtype if about.dtype in ("float32", "float16", "bfloat16") else "auto"),
        device=options.device,
        revision=options.revision if options.model else options.revision or about.revision,
        trust_remote_code=options.trust_remote_code,
        progress=progress,
    )
    added = {}
    with torch.no_grad(), full_precision():
        device = input_device(loaded.model)
        progress.stage("probe")
        probed = probe(loaded.model, torch.from_numpy(_some_ids(captures[0])).to(device))
        if probed.lens is None:
            raise ModelError(f"{about.id}: no lens can read it: {probed.lens_absent}")
        vocabulary = Vocabulary(loaded.tokenizer, probed.vocabulary_size)
        fitting = _fitting(captures[0].metadata, options, probed.lens)
        for capture in captures:
            lenses = _missing(capture, fitting, options)
            if not lenses:
                continue
            _compare(capture, probed.lens, device)
            extend_capture(
                options.store,
                capture,
                _update(capture.metadata, lenses),
                lambda extension, capture=capture, lenses=lenses: read_again(  # type: ignore[misc]
                    extension, capture, lenses, vocabulary, device, progress
                ),
            )
            added[capture.id] = [lens.info.name for lens in lenses]
    progress.end()
    if not added:
        raise InputError(f"--lens {options.lenses[0]}: it is there already")
    return RelensReport(store=options.store, added=added)


def _check(captures: Sequence[Capture], options: RelensOptions) -> None:
    """What can be said before the model is loaded."""
    for capture in captures:
        check_extendable(capture)
        if "residual" not in capture:
            raise InputError(
                f"capture {capture.id} has no residuals ({capture.why_absent('residual')}): capture again with "
                "--residuals"
            )
        if capture.metadata.crop is not None and capture.metadata.crop.redacted:
            raise InputError(
                f"capture {capture.id} was redacted (lens crop --redact), and a lens could say again what was to go: "
                "relens the original, then redact that"
            )
    for choice in choose_lenses(options.lenses):
        if choice.folder is not None:
            read_config(choice.folder)
    if set(options.lenses) == {LOGIT} and all(LOGIT in capture.lens_names for capture in captures):
        raise InputError("--lens logit: it is there already")


def _some_ids(capture: Capture) -> NDArray[np.int64]:
    """Tokens of a capture, those of the prompt first, for the model to be tried out on."""
    prompt, whole = (ids[ids >= 0] for ids in (capture.token_id[: capture.n_prompt], capture.token_id))
    return (prompt if len(prompt) else whole).astype(np.int64)


def _fitting(about: CaptureMetadata, options: RelensOptions, tail: LogitLens) -> list[Lens]:
    """The lenses that were asked for, each checked against the model."""
    assert about.residual is not None
    if tail.vocabulary_size != about.model.vocabulary_size:
        raise ModelError(
            f"the model has {tail.vocabulary_size} tokens, the captured {about.model.id} has "
            f"{about.model.vocabulary_size}"
        )
    return fit_lenses(
        options.lenses,
        tail,
        top_k=options.top_k,
        n_layer=about.model.n_layer,
        n_feature=about.residual.n_feature,
    )


def _missing(capture: Capture, fitting: Sequence[Lens], options: RelensOptions) -> list[Lens]:
    """Those that a capture does not have yet, by the names that they get there."""
    about = capture.metadata
    known = {lens.hash for lens in (about.lens, *about.lenses) if lens is not None}
    new = [
        (text, lens)
        for text, lens in zip(options.lenses, fitting, strict=True)
        if lens.info.hash not in known and not (text == LOGIT and LOGIT in capture.lens_names)
    ]
    choices = choose_lenses([text for text, _ in new], capture.lens_names)
    top_k = about.lens.top_k if about.lens else None
    return [
        replace(lens, info=lens.info.model_copy(update={"name": choice.name, "top_k": top_k or lens.info.top_k}))
        for choice, (_, lens) in zip(choices, new, strict=True)
    ]


def _compare(capture: Capture, tail: LogitLens, device: torch.device) -> None:
    """See that the tail makes of the last residuals what the model itself said when it was captured.

    Raises:
        ModelError: it does not.
    """
    about = capture.metadata
    said = _final(capture)
    known = np.flatnonzero(~np.isnan(said))
    known = known[capture.token_id[known + 1] >= 0][-COMPARED:]
    if not len(known):
        raise ModelError(f"capture {capture.id} does not say what its model's output was, so no model can be compared")
    stream = residuals(capture, about.model.n_layer, known, device)
    following = torch.from_numpy(capture.token_id[known + 1].astype(np.int64)).to(device)
    read = tail.read(stream, following, 1).next_probability.float().cpu().numpy()
    off = float(np.abs(read - said[known]).max())
    if not off <= LIMIT.get(about.model.dtype, HALF_LIMIT):
        raise ModelError(
            f"this is not the model that was captured: its head gives the tokens of capture {capture.id} probabilities "
            f"that are off by {off:.2g}; expected {about.model.id}"
            + (f" at {about.model.revision}" if about.model.revision else "")
        )


def _final(capture: Capture) -> NDArray[np.float32]:
    """Probability (token) of what came next, by the model itself or by its logit lens at depth L; NaN where unknown."""
    said = np.asarray(capture["model_probability"][: capture.committed], np.float32)
    if LOGIT in capture.lens_names and (name := capture.reading_name("next_probability", LOGIT)) in capture:
        read = capture[name][capture.metadata.model.n_layer, : capture.committed]
        said = np.where(np.isnan(said), read, said)
    return said


def _update(about: CaptureMetadata, lenses: Sequence[Lens]) -> dict[str, Any]:
    infos: list[LensInfo] = [*([about.lens] if about.lens else []), *about.lenses, *(lens.info for lens in lenses)]
    records = [info.model_dump(mode="json") for info in infos]
    return {"lens": records[0], "lenses": records[1:], "lens_absent": None}
