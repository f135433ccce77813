"""Is every number a number? Of arrays that no other check looks at cell by cell: residuals, norms, what a crop kept."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from attnlens.progress import Progress
from attnlens.schemas.errors import StoreError
from attnlens.store.chunks import Region, file_regions
from attnlens.store.findings import Findings
from attnlens.store.named import NamedArray
from attnlens.store.reader import Capture

FLOATS = frozenset({"float16", "float32", "bfloat16", "float64"})
ALWAYS = frozenset({"residual", "value_norm", "attention_max", "attention_mean", "model_probability"})
"""Looked at here in every capture, the others where a crop took cells away: their own checks take NaN for that then."""
MAY_LACK = frozenset({"next_probability", "mid_next_probability", "model_probability"})
"""Arrays in which NaN says that there is no next token, or that nothing was computed."""
TOLERANCE = 1e-4


def check_numbers(capture: Capture, findings: Findings, progress: Progress) -> None:
    """No infinity anywhere, NaN only where there is nothing, probabilities within 0 … 1; in committed rows."""
    cropped = capture.metadata.crop is not None
    for name in capture.names if capture.committed else ():
        spec = capture.specs.get(name)
        if spec is None or not ((spec.base or name) in ALWAYS or cropped) or len(spec.axes) == 0:
            continue
        try:
            array = capture[name]
            if array.kind in FLOATS:
                _check_array(capture, array, findings, progress)
        except StoreError as error:
            findings.add(f"{capture.id}/{name}", "value", f"cannot be checked: {str(error).split('; run ')[0]}")


def _check_array(capture: Capture, array: NamedArray, findings: Findings, progress: Progress) -> None:
    base = capture.specs[array.name].base or array.name
    redacted = capture.metadata.crop is not None and bool(capture.metadata.crop.redacted)
    shape = tuple(part.stop for part in array.committed_cells())
    progress.stage(f"{capture.id} {array.name}", None, "files")
    for region in file_regions(shape, array.files):
        values = array[region]
        progress.advance()
        tell = partial(_tell, array, region)
        findings.cells(array.path, "is infinite", np.isinf(values), tell)
        if base not in MAY_LACK and not redacted:  # what spelled a text that was redacted may be anywhere
            findings.cells(array.path, "is no number", np.isnan(values) & _needed(capture, array, region), tell)
        if array.unit == "probability":
            outside = (values < -TOLERANCE) | (values > 1 + TOLERANCE)
            findings.cells(array.path, "outside 0 … 1", outside & np.isfinite(values), tell)
        findings.count("numbers", values.size)


def _needed(capture: Capture, array: NamedArray, region: Region) -> NDArray[np.bool_]:
    """Cells of a region, to be broadcast, that hold a number: the model has that layer and head, a lens read the token,
    and no crop took it away.
    """
    needed = np.ones((1,) * len(region), np.bool_)
    for number, (axis, part) in enumerate(zip(array.axes, region, strict=True)):
        there = capture.kept.get(axis, np.ones(part.stop, np.bool_))[part]
        if axis == "layer":
            there = there & (capture.key_layers if array.name == "attention_k" else capture.attention_layers)[part]
        elif axis == "token":
            there = there & (np.arange(part.start, part.stop) >= array.first_row)
        needed = needed & _along(there, number, len(region))
    if array.axes[:2] == ("layer", "head"):
        heads = capture.heads_there[region[0], region[1]]
        needed = needed & heads.reshape(*heads.shape, *(1,) * (len(region) - 2))
    return needed


def _along(mask: NDArray[np.bool_], axis: int, count: int) -> NDArray[np.bool_]:
    return mask.reshape(tuple(len(mask) if number == axis else 1 for number in range(count)))


def _tell(array: NamedArray, region: Region, *cell: int) -> tuple[str, str]:
    at = tuple(part.start + index for part, index in zip(region, cell, strict=True))
    where = ", ".join(f"{axis} {index}" for axis, index in zip(array.axes, at, strict=True))
    return f"{array.path}/{array.chunk_key(at)}", where
