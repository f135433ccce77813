"""Is what an attention array holds attention? Checked block of rows by block of rows, without the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from attnlens.progress import Progress
from attnlens.schemas.errors import StoreError
from attnlens.schemas.metadata import LayerInfo
from attnlens.store.findings import Findings
from attnlens.store.named import NamedArray
from attnlens.store.reader import Capture

SUM_TOLERANCE = 1e-3
"""Float16 keeps a weight to half a thousandth; a row of such weights adds up to 1 as closely."""
SUBNORMAL = 2.0**-25
"""The most that rounding takes from a weight near 0, once a key."""
REDUCTION_TOLERANCE = 1e-3
REDUCTIONS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "attention_max": lambda values: values.max(axis=0),
    "attention_mean": lambda values: values.mean(axis=0, dtype=np.float32),
}
"""From weights (head, query, key) to what is stored (query, key)."""


def check_attention(capture: Capture, findings: Findings, progress: Progress) -> None:
    """Weights in 0 … 1, causal and inside the window, rows that sum to 1 (less with sinks), reductions that agree."""
    if "attention_weight" not in capture or not capture.committed:
        return
    weight = capture["attention_weight"]
    progress.stage(f"{capture.id} attention", capture.committed, "rows")
    done = 0
    for lanes, rows in _blocks(weight, capture.committed):
        try:
            block = weight[lanes, :, rows]
            reduced = _reductions(capture, lanes, rows)
        except StoreError as error:
            findings.add(f"{capture.id}/attention_weight", "value", reason(error))
            continue
        finally:
            progress.advance(max(0, rows.stop - done))
            done = max(done, rows.stop)
        for layer in range(lanes.start, lanes.stop):
            info = capture.metadata.model.layers[layer]
            if info.kind != "none":
                values = block[layer - lanes.start, : info.n_head].astype(np.float32)
                _check_no_heads(weight, info, rows.start, block[layer - lanes.start, info.n_head :], findings)
                gone = _gone(capture, layer, rows, values.shape)
                if gone is not None:
                    _check_gone(weight, layer, rows.start, ~np.isnan(values) & gone, findings)
                    values = np.where(gone, np.float32(0), values)
                _check_layer(weight, info, rows.start, values, gone is not None, findings)
                for name, found in reduced.items() if gone is None else ():
                    check_reduction(capture, name, layer, found[:, layer - lanes.start], values, rows.stop, findings)
                findings.count("attention rows", (rows.stop - rows.start) * info.n_head)


def _check_layer(
    weight: NamedArray, info: LayerInfo, start: int, values: NDArray[np.float32], cut: bool, findings: Findings
) -> None:
    """Values (head, query, key) of one layer, queries from `start` on; some are gone if it was `cut`."""
    path = weight.path

    def tell(head: int, row: int, key: int = -1) -> tuple[str, str]:
        at = f", key {key}" if key >= 0 else ""
        where = f"{path}/{weight.chunk_key((info.index, head, start + row, max(0, key)))}"
        return where, f"layer {info.index}, head {head}, query {start + row}{at}"

    query = np.arange(start, start + values.shape[1])[:, None]
    key = np.arange(values.shape[2])[None, :]
    findings.cells(path, "weight outside 0 … 1", ~((values >= 0) & (values <= 1)), tell)
    findings.cells(path, "looks at a later token", (values != 0) & (key > query), tell)
    if info.kind == "sliding" and info.window is not None:
        outside = key <= query - info.window
        findings.cells(path, f"looks beyond the window of {info.window}", (values != 0) & outside, tell)
    if info.kind == "chunked" and info.window is not None:
        outside = key < query // info.window * info.window
        findings.cells(path, f"looks out of its chunk of {info.window}", (values != 0) & outside, tell)
    more = _rounding(weight, values.shape[2])
    findings.cells(path, "row does not sum to 1", wrong_sums(info, values, cut=cut, more=more), tell)


def wrong_sums(
    info: LayerInfo, values: NDArray[np.float32], *, cut: bool = False, more: float = 0.0
) -> NDArray[np.bool_]:
    """Which rows (head, query) of weights (head, query, key) do not sum to 1, or with sinks, or cut, to more than 1.

    `more`: how far a sum may be off because weights were rounded.
    """
    sums = values.sum(axis=-1)
    tolerance = SUM_TOLERANCE + values.shape[2] * SUBNORMAL + more
    return np.asarray(sums > 1 + tolerance if info.sinks or cut else ~(np.abs(sums - 1) <= tolerance))


def _gone(capture: Capture, layer: int, rows: slice, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Which cells (head, query, key) of a layer a crop took away, None if it took none."""
    kept = capture.kept
    if not kept:
        return None
    n_head, _, n_key = shape
    there = np.full(shape, bool(kept.get("layer", np.ones(layer + 1, bool))[layer]))
    there &= kept.get("head", np.ones(n_head, bool))[:n_head, None, None]
    there &= kept.get("query", np.ones(rows.stop, bool))[rows][None, :, None]
    there &= kept.get("key", np.ones(n_key, bool))[None, None, :]
    return None if there.all() else ~there


def _check_gone(weight: NamedArray, layer: int, start: int, bad: NDArray[np.bool_], findings: Findings) -> None:
    def tell(head: int, row: int, key: int) -> tuple[str, str]:
        where = f"{weight.path}/{weight.chunk_key((layer, head, start + row, key))}"
        return where, f"layer {layer}, head {head}, query {start + row}, key {key}"

    findings.cells(weight.path, "is there although it was cropped away", bad, tell)


def _rounding(weight: NamedArray, n_key: int) -> float:
    """How far a row of 8-bit square roots may be from its sum: Σ √w ≤ √n where Σ w = 1."""
    return float(np.sqrt(n_key) / 254 + n_key / 508**2 + n_key * 2.0**-12 / 254) if weight.encoding else 0.0


def _check_no_heads(
    weight: NamedArray, info: LayerInfo, start: int, values: NDArray[np.float16], findings: Findings
) -> None:
    """Values (head, query, key) of the heads that other layers have and this one does not: nothing may be there."""

    def tell(head: int, row: int, key: int) -> tuple[str, str]:
        where = f"{weight.path}/{weight.chunk_key((info.index, info.n_head + head, start + row, key))}"
        return where, f"layer {info.index}, head {info.n_head + head}, query {start + row}"

    findings.cells(weight.path, f"weight of a head beyond the layer's {info.n_head}", ~np.isnan(values), tell)


def _reductions(capture: Capture, lanes: slice, rows: slice) -> dict[str, NDArray[np.float16]]:
    """The stored reductions (generated, layer, key) of the queries in `rows` that have some."""
    origin = capture.n_prompt - 1
    start = max(rows.start, origin)
    if start >= rows.stop:
        return {}
    return {name: capture[name][start - origin : rows.stop - origin, lanes] for name in REDUCTIONS if name in capture}


def check_reduction(
    capture: Capture,
    name: str,
    layer: int,
    found: NDArray[np.float16],
    values: NDArray[np.float32],
    stop: int,
    findings: Findings,
) -> None:
    """Does a reduction (query, key) of one layer agree with the weights (head, query, key)? Both end at `stop`.

    A layer that is said to have no heads has none to compare with; weights that it has all the same are told elsewhere.
    """
    if not len(values):
        return
    array, origin, start = capture[name], capture.n_prompt - 1, stop - len(found)

    def tell(row: int, key: int) -> tuple[str, str]:
        where = f"{array.path}/{array.chunk_key((start + row - origin, layer, key))}"
        return where, f"layer {layer}, query {start + row}, key {key}"

    expected = REDUCTIONS[name](values[:, values.shape[1] - len(found) :])
    rounded = capture["attention_weight"].max_error if "attention_weight" in capture else 0.0
    tolerance = REDUCTION_TOLERANCE + array.max_error + rounded
    bad = ~(np.abs(found.astype(np.float32) - expected) <= tolerance)
    findings.cells(array.path, "differs from the heads' weights", bad, tell)
    findings.count("reduced rows", len(found))


def _blocks(weight: NamedArray, committed: int) -> Iterator[tuple[slice, slice]]:
    """(layers, queries) of the files, so that each is read once."""
    layers, _, rows, _ = weight.files
    for row, layer in itertools.product(range(0, committed, rows), range(0, weight.shape[0], layers)):
        yield slice(layer, min(weight.shape[0], layer + layers)), slice(row, min(committed, row + rows))


def reason(error: StoreError) -> str:
    """Why rows could not be checked, without the advice to verify."""
    return f"rows cannot be checked: {str(error).split('; run ')[0]}"
