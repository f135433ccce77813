"""`lens relens`: another lens for a store that kept its residuals. The model gives its tail, and is not run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnlens.capture.entries import VocabularyEntries
from attnlens.capture.equipment import Lens, fit_lenses
from attnlens.capture.forward import input_device
from attnlens.capture.lenses.choice import choose_lenses, read_config
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.lenses.reader import LaneReader, depth_names
from attnlens.capture.models import load
from attnlens.capture.probe import probe
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError, ModelError
from attnlens.schemas.metadata import CaptureMetadata, LensInfo
from attnlens.store.reader import Capture, open_store
from attnlens.store.tools.extend import Extension, extend_capture

ROWS = 512
"""Tokens that are read at a time."""
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
    """What was added: capture → names of its new lenses."""

    store: Path
    added: dict[str, list[str]]


def relens(options: RelensOptions, progress: Progress) -> RelensReport:
    """Reads the residuals of a store through further lenses and adds what they say.

    Raises:
        InputError: the store keeps no residuals, or a lens is unknown, there already, or does not fit.
        ModelError: the model is not the one that was captured.
        StoreError: the store is damaged or the disk refuses; it is as it was.
    """
    if not options.lenses:
        raise InputError("which lens? Give --lens tuned:FOLDER, or --lens logit")
    store = open_store(options.store)
    captures = [store[options.capture]] if options.capture is not None else list(store)
    if not captures:
        raise InputError(f"{options.store} has no captures")
    for capture in captures:
        _check(capture, options)
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
    with torch.no_grad():
        device = input_device(loaded.model)
        ids = torch.tensor(captures[0].token_id[: captures[0].n_prompt].astype(np.int64), device=device)
        progress.stage("probe")
        probed = probe(loaded.model, ids)
        if probed.lens is None:
            raise ModelError(f"{about.id}: no lens can read it: {probed.lens_absent}")
        vocabulary = Vocabulary(loaded.tokenizer, probed.vocabulary_size)
        for capture in captures:
            lenses = _fitting(capture, options, probed.lens)
            _compare(capture, probed.lens, device)
            extend_capture(
                options.store,
                capture,
                _update(capture.metadata, lenses),
                lambda extension, capture=capture, lenses=lenses: _fill(  # type: ignore[misc]
                    extension, capture, lenses, vocabulary, device, progress
                ),
            )
            added[capture.id] = [lens.info.name for lens in lenses]
    progress.end()
    return RelensReport(store=options.store, added=added)


def _check(capture: Capture, options: RelensOptions) -> None:
    """What can be said before the model is loaded."""
    if "residual" not in capture:
        raise InputError(
            f"capture {capture.id} has no residuals ({capture.why_absent('residual')}): capture again with --residuals"
        )
    for choice in choose_lenses(options.lenses, capture.lens_names):
        if choice.folder is not None:
            read_config(choice.folder)


def _fitting(capture: Capture, options: RelensOptions, tail: LogitLens) -> list[Lens]:
    about = capture.metadata
    assert about.residual is not None
    if tail.vocabulary_size != about.model.vocabulary_size:
        raise ModelError(
            f"the model has {tail.vocabulary_size} tokens, the captured {about.model.id} has "
            f"{about.model.vocabulary_size}"
        )
    return fit_lenses(
        options.lenses,
        tail,
        top_k=about.lens.top_k if about.lens else options.top_k,
        n_layer=about.model.n_layer,
        n_feature=about.residual.n_feature,
        taken=capture.lens_names,
    )


def _compare(capture: Capture, tail: LogitLens, device: torch.device) -> None:
    """See that the tail makes of the last residuals what the model itself said when it was captured.

    Raises:
        ModelError: it does not.
    """
    about = capture.metadata
    known = np.flatnonzero(~np.isnan(capture["model_probability"][: capture.committed]))[-COMPARED:]
    if not len(known):
        raise ModelError(f"capture {capture.id} does not say what its model's output was, so no model can be compared")
    stream = _stream(capture, about.model.n_layer, known, device)
    following = torch.from_numpy(capture.token_id[known + 1].astype(np.int64)).to(device)
    read = tail.read(stream, following, 1).next_probability.float().cpu().numpy()
    off = float(np.abs(read - capture["model_probability"][known]).max())
    if not off <= LIMIT.get(about.model.dtype, HALF_LIMIT):
        raise ModelError(
            f"this is not the model that was captured: its head gives the tokens of capture {capture.id} probabilities "
            f"that are off by {off:.2g}; expected {about.model.id}"
            + (f" at {about.model.revision}" if about.model.revision else "")
        )


def _stream(capture: Capture, depth: int, tokens: Any, device: torch.device) -> torch.Tensor:
    """Residuals (token, feature) of a depth, as the model had them."""
    info = capture.metadata.residual
    assert info is not None
    values = capture["residual"][depth, tokens]
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, getattr(torch, info.dtype))


def _update(about: CaptureMetadata, lenses: Sequence[Lens]) -> dict[str, Any]:
    infos: list[LensInfo] = [*([about.lens] if about.lens else []), *about.lenses, *(lens.info for lens in lenses)]
    records = [info.model_dump(mode="json") for info in infos]
    return {"lens": records[0], "lenses": records[1:], "lens_absent": None}


def _fill(
    extension: Extension,
    capture: Capture,
    lenses: Sequence[Lens],
    vocabulary: Vocabulary,
    device: torch.device,
    progress: Progress,
) -> None:
    about = extension.metadata
    entries = VocabularyEntries(
        extension.vocabulary, vocabulary, capture.vocabulary if "vocabulary_id" in capture else ()
    )
    depths = range(about.model.n_layer + 1)
    first = about.lens.name if about.lens else ""
    tracked = torch.tensor(about.tracked) if about.tracked else None
    readers = [
        LaneReader(
            lens=lens.tail,
            lanes=depths,
            names=depth_names(None if lens.info.name == first else lens.info.name, tracked=tracked is not None),
            top_k=lens.info.top_k,
            translators=lens.translators,
            tracked=tracked,
        )
        for lens in lenses
    ]
    following = np.append(capture.token_id[1:], -1).astype(np.int64)
    progress.stage(f"{capture.id} reading", capture.committed, "tokens")
    for start in range(0, capture.committed, ROWS):
        tokens = np.arange(start, min(start + ROWS, capture.committed))
        after = torch.from_numpy(following[tokens]).to(device)
        for reader in readers:
            read = [reader.one(depth, _stream(capture, depth, tokens, device), after) for depth in depths]
            entries.use(np.stack([arrays[reader.token_array] for arrays in read]))
            for name in read[0]:
                extension.arrays[name][:, start : start + len(tokens)] = np.stack([arrays[name] for arrays in read])
        progress.advance(len(tokens))
