"""Is what the lens arrays hold a reading of a vocabulary? Checked block of tokens by block of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.progress import Progress
from attnlens.schemas.arrays import ARRAY, READINGS
from attnlens.schemas.errors import StoreError
from attnlens.store.findings import Findings
from attnlens.store.reader import Capture

PROBABILITY_TOLERANCE = 1e-4
FINAL_TOLERANCE = {"float32": 1e-3, "float64": 1e-3}
HALF_TOLERANCE = 2e-2
"""How far depth L may be from the model's own output in float32, and in half precision."""


def check_lens(capture: Capture, findings: Findings, progress: Progress) -> None:
    """Ids in the vocabulary and listed, ranks in order, probabilities, entropy, and depth L against the model."""
    if "lens_token" not in capture or not capture.committed:
        return
    try:
        vocabulary = np.asarray(capture["vocabulary_id"][:])
    except StoreError:
        return
    known = vocabulary[vocabulary >= 0]
    if len(np.unique(known)) != len(known):
        findings.add(f"{capture.id}/vocabulary_id", "value", "an id is listed twice")
    progress.stage(f"{capture.id} lens", capture.committed, "tokens")
    step = capture["lens_token"].files[1]
    for start in range(0, capture.committed, step):
        tokens = slice(start, min(capture.committed, start + step))
        try:
            _check_block(capture, tokens, known, findings)
        except StoreError as error:
            message = f"tokens {start} … {tokens.stop - 1} cannot be checked: {str(error).split('; run ')[0]}"
            findings.add(f"{capture.id}/lens_token", "value", message)
        progress.advance(tokens.stop - start)


def _check_block(capture: Capture, tokens: slice, known: NDArray[np.int32], findings: Findings) -> None:
    start, stop = tokens.start, tokens.stop
    ids, probability, entropy, rank, following = (_read(capture, name, tokens) for name in READINGS)
    cut = capture.metadata.crop is not None  # then a fill value is what was taken away
    size = capture.metadata.model.vocabulary_size
    check = _Check(capture, start, findings)
    check("lens_token", "id outside the vocabulary", ((ids < 0) & ~((ids == -1) & cut)) | (ids >= size))
    check("lens_token", "id is not listed in vocabulary_id", (ids >= 0) & (ids < size) & ~np.isin(ids, known))
    check(
        "lens_probability",
        "outside 0 … 1",
        ~((probability >= 0) & (probability <= 1 + PROBABILITY_TOLERANCE) | _taken(probability, cut)),
    )
    check("lens_probability", "ranks are not in descending order", np.diff(probability, axis=-1) > 0)
    check("lens_probability", "top ranks sum to more than 1", probability.sum(-1) > 1 + PROBABILITY_TOLERANCE)
    highest = np.log(size) + 1e-3
    check(
        "lens_entropy",
        "outside 0 … log(vocabulary)",
        ~((entropy >= -1e-3) & (entropy <= highest) | _taken(entropy, cut)),
    )
    after = np.full(stop - start, -1, np.int64)
    tail = capture.token_id[start + 1 : stop + 1]
    after[: len(tail)] = tail
    has_next = np.broadcast_to(after >= 0, rank.shape) & ~((rank == -1) & cut)
    check("next_rank", "outside the vocabulary", (has_next & (rank < 0)) | (rank < -1) | (rank >= size))
    given = ~np.isnan(following)
    outside = (following < 0) | (following > 1 + PROBABILITY_TOLERANCE)
    check("next_probability", "outside 0 … 1", (has_next & ~given & (not cut)) | (given & outside))
    listed = (ids == after[None, :, None]) & has_next[..., None]
    apart = np.abs(probability - following[..., None]) > PROBABILITY_TOLERANCE
    check("next_probability", "differs from lens_probability of the same token", (listed & apart).any(-1))
    final = capture["model_probability"][tokens]
    limit = FINAL_TOLERANCE.get(capture.metadata.model.dtype, HALF_TOLERANCE)
    differs = np.abs(following[-1] - final) > limit  # NaN compares as False
    last = np.zeros(following.shape, bool)
    last[-1] = differs
    check("next_probability", "the last depth differs from model_probability", last)
    findings.count("lens tokens", stop - start)


def _read(capture: Capture, name: str, tokens: slice) -> NDArray[Any]:
    """A block of a lens array (depth, token[, rank]); fill values where a crop left the array out."""
    if name in capture or capture.metadata.crop is None:
        return capture[name][:, tokens]
    shape = capture["lens_token"].shape
    spec = ARRAY[name]
    return np.full((shape[0], tokens.stop - tokens.start, *shape[2:])[: len(spec.axes)], spec.fill, spec.dtype)


def _taken(values: NDArray[Any], cut: bool) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(values) & cut, np.bool_)


class _Check:
    """Reports cells (depth, token[, rank]) of a block that begins at one token."""

    def __init__(self, capture: Capture, start: int, findings: Findings) -> None:
        self._capture = capture
        self._start = start
        self._findings = findings

    def __call__(self, name: str, fault: str, bad: NDArray[np.bool_]) -> None:
        if name not in self._capture:
            return
        array = self._capture[name]

        def tell(depth: int, token: int, rank: int = 0) -> tuple[str, str]:
            cell = (depth, self._start + token, rank)[: len(array.axes)]
            return f"{array.path}/{array.chunk_key(cell)}", f"depth {depth}, token {self._start + token}"

        self._findings.cells(array.path, fault, bad, tell)
