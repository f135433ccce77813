"""Is what a capture holds beyond the usual what it can be? Further lenses, tracked tokens, value norms, streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.progress import Progress
from attnlens.schemas.arrays import MID, READINGS, TRACKED_READINGS, reading
from attnlens.schemas.errors import StoreError
from attnlens.store.check_lens import Cells, check_readings
from attnlens.store.findings import Findings
from attnlens.store.reader import Capture

PROBABILITY_TOLERANCE = 1e-4
Names = Mapping[str, str]
"""Array of a lens → its name for another, or for the streams inside layers."""


def check_evidence(capture: Capture, findings: Findings, progress: Progress) -> None:
    """Checks each as far as it is there, block of rows by block of rows."""
    if not capture.committed:
        return
    for lens in capture.lens_names[1:]:
        names = {name: reading(name, lens) for name in (*READINGS, *TRACKED_READINGS)}
        if names["lens_token"] not in capture:
            continue
        _by_blocks(capture, names["lens_token"], findings, progress, lambda tokens, names=names: check_readings(  # type: ignore[misc]
            capture, names, tokens, findings, last_is_the_models=True
        ))  # fmt: skip
        _tracked(capture, names, findings, progress)
    _tracked(capture, {name: name for name in (*READINGS, *TRACKED_READINGS)}, findings, progress)
    if MID["lens_token"] in capture:
        lanes = np.flatnonzero(capture.attention_layers)
        _by_blocks(capture, MID["lens_token"], findings, progress, lambda tokens: check_readings(
            capture, MID, tokens, findings, last_is_the_models=False, lanes=lanes
        ))  # fmt: skip
    if "value_norm" in capture:
        _by_blocks(capture, "value_norm", findings, progress, lambda keys: _norms(capture, keys, findings))


def _by_blocks(
    capture: Capture, name: str, findings: Findings, progress: Progress, check: Callable[[slice], None]
) -> None:
    """Checks the rows of each file together; a block that cannot be read is told once."""
    array = capture[name]
    axis = next(number for number, axis in enumerate(array.axes) if axis in ("token", "key"))
    progress.stage(f"{capture.id} {name}", capture.committed, "tokens")
    for start in range(array.first_row, capture.committed, array.files[axis]):
        rows = slice(start, min(capture.committed, start + array.files[axis]))
        try:
            check(rows)
        except StoreError as error:
            message = f"tokens {start} … {rows.stop - 1} cannot be checked: {str(error).split('; run ')[0]}"
            findings.add(array.path, "value", message)
        progress.advance(rows.stop - start)


def _tracked(capture: Capture, names: Names, findings: Findings, progress: Progress) -> None:
    if not {names["tracked_rank"], names["tracked_probability"]} <= set(capture.names):
        return
    ids = np.asarray(capture["tracked_id"][:])
    if ids.tolist() != capture.metadata.tracked:
        findings.add(f"{capture.id}/tracked_id", "value", "is not the list in the capture's metadata")
        return

    def check(tokens: slice) -> None:
        cells = Cells(capture, tokens.start, findings)
        rank, probability = capture[names["tracked_rank"]][:, tokens], capture[names["tracked_probability"]][:, tokens]
        size = capture.metadata.model.vocabulary_size
        cut = capture.metadata.crop is not None  # then a fill value is what was taken away
        cells(names["tracked_rank"], "outside the vocabulary", ((rank < 0) & ~((rank == -1) & cut)) | (rank >= size))
        outside = ~((probability >= 0) & (probability <= 1 + PROBABILITY_TOLERANCE)) & ~(np.isnan(probability) & cut)
        cells(names["tracked_probability"], "outside 0 … 1", outside)
        if names["lens_token"] not in capture or names["lens_probability"] not in capture:
            return
        listed, likely = capture[names["lens_token"]][:, tokens], capture[names["lens_probability"]][:, tokens]
        same = listed[:, :, None, :] == ids[None, None, :, None]
        apart = np.abs(likely[:, :, None, :] - probability[..., None]) > PROBABILITY_TOLERANCE
        cells(
            names["tracked_probability"],
            f"differs from {names['lens_probability']} of the same token",
            (same & apart).any(-1),
        )
        findings.count("tracked tokens", (tokens.stop - tokens.start) * len(ids))

    _by_blocks(capture, names["tracked_rank"], findings, progress, check)


def _norms(capture: Capture, keys: slice, findings: Findings) -> None:
    array = capture["value_norm"]
    values: NDArray[Any] = array[:, :, keys]
    heads = np.asarray([layer.n_head for layer in capture.metadata.model.layers]) * capture.attention_layers
    bad = ~(values >= 0) & (np.arange(values.shape[1])[None, :, None] < heads[:, None, None])

    def tell(layer: int, head: int, key: int) -> tuple[str, str]:
        where = f"{array.path}/{array.chunk_key((layer, head, keys.start + key))}"
        return where, f"layer {layer}, head {head}, key {keys.start + key}"

    if capture.metadata.crop is not None:
        bad &= ~np.isnan(values)  # taken away
    findings.cells(array.path, "is negative or no number", bad, tell)
    findings.count("value norms", values.size)
