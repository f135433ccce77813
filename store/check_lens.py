"""Is what the lens arrays hold a reading of a vocabulary? Checked block of tokens by block of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.progress import Progress
from attnlens.schemas.arrays import ARRAY, READINGS
from attnlens.schemas.errors import StoreError
from attnlens.store.entropy import EXACT_ENTROPY, entropy_bounds
from attnlens.store.findings import Findings
from attnlens.store.reader import Capture

PROBABILITY_TOLERANCE = 1e-4
FINAL_TOLERANCE = {"float32": 1e-3, "float64": 1e-3}
HALF_TOLERANCE = 2e-2
"""How far depth L may be from the model's own output in float32, and in half precision."""

NAMES = {name: name for name in READINGS}


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
    _check_unread(capture, findings)
    for start in range(capture.lens_start, capture.committed, step):
        tokens = slice(start, min(capture.committed, start + step))
        try:
            check_readings(capture, NAMES, tokens, findings, last_is_the_models=True)
        except StoreError as error:
            message = f"tokens {start} … {tokens.stop - 1} cannot be checked: {str(error).split('; run ')[0]}"
            findings.add(f"{capture.id}/lens_token", "value", message)
        progress.advance(tokens.stop - start)


def check_readings(
    capture: Capture,
    names: Mapping[str, str],
    tokens: slice,
    findings: Findings,
    *,
    last_is_the_models: bool,
    lanes: NDArray[np.intp] | None = None,
) -> None:
    """Checks some tokens of the arrays of one lens.

    Args:
        capture: Where.
        names: Array of the table → its name for this lens.
        tokens: Which.
        findings: What is found.
        last_is_the_models: The last lane is what the model itself made its output of.
        lanes: The lanes (depths or layers) that hold readings, all if None.
    """
    start, stop = tokens.start, tokens.stop
    where = np.arange(capture[names["lens_token"]].shape[0]) if lanes is None else lanes
    ids, probability, entropy, rank, following = (
        _read(capture, names, name, where, tokens)
        for name in ("lens_token", "lens_probability", "lens_entropy", "next_rank", "next_probability")
    )
    cut = capture.metadata.crop is not None  # then a fill value is what was taken away
    known = np.asarray(capture["vocabulary_id"][:])
    size = capture.metadata.model.vocabulary_size
    cells = Cells(capture, start, findings, where)

    def check(name: str, fault: str, bad: NDArray[np.bool_]) -> None:
        if names[name] in capture:
            cells(names[name], fault, bad)

    check("lens_token", "id outside the vocabulary", ((ids < 0) & ~((ids == -1) & cut)) | (ids >= size))
    check("lens_token", "id is not listed in vocabulary_id", (ids >= 0) & (ids < size) & ~np.isin(ids, known))
    wrong = ~((probability >= 0) & (probability <= 1 + PROBABILITY_TOLERANCE)) & ~_taken(probability, cut)
    check("lens_probability", "outside 0 … 1", wrong)
    check("lens_probability", "ranks are not in descending order", np.diff(probability, axis=-1) > 0)
    check("lens_probability", "top ranks sum to more than 1", probability.sum(-1) > 1 + PROBABILITY_TOLERANCE)
    highest = np.log(size) + 1e-3
    wrong = ~((entropy >= -1e-3) & (entropy <= highest)) & ~_taken(entropy, cut)
    check("lens_entropy", "outside 0 … log(vocabulary)", wrong)
    if names["lens_entropy"] in capture:
        _check_entropy(capture, names["lens_entropy"], entropy, probability, ~wrong, cells)
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
    check("next_probability", f"differs from {names['lens_probability']} of the same token", (listed & apart).any(-1))
    if last_is_the_models:
        final = capture["model_probability"][tokens]
        limit = FINAL_TOLERANCE.get(capture.metadata.model.dtype, HALF_TOLERANCE)
        last = np.zeros(following.shape, bool)
        last[-1] = np.abs(following[-1] - final) > limit  # NaN compares as False
        check("next_probability", "the last depth differs from model_probability", last)
    findings.count("lens tokens", stop - start)


def _read(
    capture: Capture, names: Mapping[str, str], name: str, lanes: NDArray[np.intp], tokens: slice
) -> NDArray[Any]:
    """A block of a lens array (lane, token[, rank]); fill values where a crop left the array out."""
    if names[name] in capture or capture.metadata.crop is None:
        return capture[names[name]].filled((lanes, tokens))
    ranks = capture[names["lens_token"]].shape[2]
    spec = ARRAY[name]
    return np.full((len(lanes), tokens.stop - tokens.start, ranks)[: len(spec.axes)], spec.fill, spec.dtype)


def _check_entropy(
    capture: Capture,
    name: str,
    entropy: NDArray[Any],
    probability: NDArray[Any],
    plausible: NDArray[np.bool_],
    cells: Cells,
) -> None:
    """Entropy (lane, token) against what the top k (lane, token, rank) leave open; a note for earlier writers."""
    lowest, highest = entropy_bounds(probability, capture.metadata.model.vocabulary_size)
    exact = any(check.name == EXACT_ENTROPY for check in capture.metadata.self_checks)
    fault = f"not an entropy that the top {probability.shape[-1]} probabilities allow"
    cells(
        name,
        fault if exact else f"{fault}; earlier versions lost digits where logits are large",
        plausible & ((entropy < lowest) | (entropy > highest)),  # NaN compares as False
        lambda *cell: f", {entropy[cell]:.7g} nat, expected {max(0.0, lowest[cell]):.7g} … {highest[cell]:.7g}",
        note=not exact,
    )


def _taken(values: NDArray[Any], cut: bool) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(values) & cut, np.bool_)


def _check_unread(capture: Capture, findings: Findings) -> None:
    """Tokens that the lens was not asked to read have no readings."""
    stop = min(capture.lens_start, capture.committed)
    for name in (name for name in READINGS if stop and name in capture):
        values = capture[name].isel(token=slice(0, stop))
        Cells(capture, 0, findings)(
            name, f"a reading of a token before lens_first, {capture.metadata.lens_first}",
            ~np.isnan(values) if values.dtype.kind == "f" else values != -1,
        )  # fmt: skip


class Cells:
    """Reports cells (lane, token[, …]) of a block that begins at one token; `lanes` are those in hand."""

    def __init__(self, capture: Capture, start: int, findings: Findings, lanes: NDArray[np.intp] | None = None) -> None:
        self._capture = capture
        self._start = start
        self._findings = findings
        self._lanes = lanes

    def __call__(
        self,
        name: str,
        fault: str,
        bad: NDArray[np.bool_],
        found: Callable[..., str] = lambda *cell: "",
        *,
        note: bool = False,
    ) -> None:
        """Cells of the array `name` that have one fault. `found`: from the first one's indices to what is there."""
        array = self._capture[name]

        def tell(lane: int, token: int, rank: int = 0) -> tuple[str, str]:
            more = found(*(lane, token, rank)[: bad.ndim])
            lane = lane if self._lanes is None else int(self._lanes[lane])
            cell = (lane, self._start + token, rank)[: len(array.axes)]
            return f"{array.path}/{array.chunk_key(cell)}", f"{array.axes[0]} {lane}, token {self._start + token}{more}"

        self._findings.cells(array.path, fault, bad, tell, note=note)
