"""Can attention be made of stored queries and keys, and is it what the stored reductions say?"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from attnlens.progress import Progress
from attnlens.schemas.errors import StoreError
from attnlens.store.attention import ReplayedAttention
from attnlens.store.check_attention import REDUCTIONS, check_reduction, reason, wrong_sums
from attnlens.store.findings import Findings
from attnlens.store.named import NamedArray
from attnlens.store.reader import Capture

LARGEST = float(np.finfo(np.float32).max)


def check_vectors(capture: Capture, findings: Findings, progress: Progress) -> None:
    """Numbers finite, no score that overflows, replayed rows that are distributions, reductions that agree."""
    if not capture.committed or not {"attention_q", "attention_k"} <= set(capture.names):
        return
    if capture.kept or (capture.metadata.crop is not None and capture.metadata.crop.redacted):
        return  # of a part of the keys no row can be made
    progress.stage(f"{capture.id} queries and keys", 2 * capture.committed, "tokens")
    lengths = [
        _check_numbers(capture[name], needed, capture.committed, findings, progress)
        for name, needed in (("attention_q", capture.attention_layers), ("attention_k", capture.key_layers))
    ]
    # By Cauchy and Schwarz no score is larger than this.
    for info in capture.metadata.model.layers:
        source = info.index if info.key_source is None else info.key_source
        if info.kind != "none" and not lengths[0][info.index] * lengths[1][source] * abs(info.scaling or 1) < LARGEST:
            findings.add(f"{capture.id}/attention_q", "value", f"layer {info.index}: its scores may overflow")
    if capture.committed >= capture.n_prompt and set(REDUCTIONS) <= set(capture.names):
        _check_rows(capture, findings, progress)


def _check_numbers(
    array: NamedArray, needed: NDArray[np.bool_], committed: int, findings: Findings, progress: Progress
) -> NDArray[np.float64]:
    """Are the vectors of all layers that need some finite? Returns the length of the longest one (layer)."""
    longest = np.zeros(len(needed))

    def tell(token: int, layer: int, *_: int) -> tuple[str, str]:
        cell = (start + token, int(np.flatnonzero(needed)[layer]), 0, 0)
        return f"{array.path}/{array.chunk_key(cell)}", f"token {cell[0]}, layer {cell[1]}"

    for start in range(0, committed, array.files[0]):
        stop = min(committed, start + array.files[0])
        try:
            values = array[start:stop][:, needed].astype(np.float32)
        except StoreError as error:
            findings.add(array.path, "value", reason(error))
            continue
        finally:
            progress.advance(stop - start)
        findings.cells(array.path, "is not a finite number", ~np.isfinite(values), tell)
        with np.errstate(all="ignore"):
            lengths = np.sqrt(np.square(values, dtype=np.float64).sum(axis=-1).max(axis=(0, 2)))
        longest[needed] = np.fmax(longest[needed], lengths)
        findings.count("vectors", values.shape[0] * values.shape[1] * values.shape[2])
    return longest


def _tell(path: str, layer: int, first: int, head: int, row: int) -> tuple[str, str]:
    return path, f"layer {layer}, head {head}, query {first + row}"


def _check_rows(capture: Capture, findings: Findings, progress: Progress) -> None:
    """Replays every row of which reductions are stored."""
    path = f"{capture.id}/attention_q"
    attention, origin = capture.attention, capture.n_prompt - 1
    assert isinstance(attention, ReplayedAttention)
    queries, layers = np.arange(origin, capture.committed), np.flatnonzero(capture.attention_layers)
    progress.stage(f"{capture.id} attention", len(queries) * len(layers), "rows")
    try:
        for lanes, places, weights in attention.blocks(queries, layers):
            first, last = int(queries[places[0]]), int(queries[places[-1]]) + 1
            for lane, values in zip(lanes, weights, strict=True):
                layer = int(layers[lane])
                info = capture.metadata.model.layers[layer]
                wrong = wrong_sums(info, values) | ~((values >= 0) & (values <= 1)).all(axis=-1)
                findings.cells(path, "replayed row is no distribution", wrong, partial(_tell, path, layer, first))
                for name in REDUCTIONS:
                    found = capture[name][first - origin : last - origin, layer]
                    check_reduction(capture, name, layer, found, values, last, findings)
            progress.advance(len(lanes) * len(places))
            findings.count("attention rows", len(lanes) * len(places) * weights.shape[1])
    except StoreError as error:
        findings.add(path, "value", reason(error))
