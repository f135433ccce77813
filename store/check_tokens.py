"""Are the timeline, its bytes and its coordinates in order?"""

from __future__ import annotations

import numpy as np

from attnlens.schemas.arrays import ARRAYS
from attnlens.schemas.errors import StoreError
from attnlens.store.findings import Findings
from attnlens.store.reader import Capture


def check_tokens(capture: Capture, findings: Findings) -> None:
    """Ids inside the vocabulary, byte offsets that grow and cover all bytes, coordinates that count upwards."""
    if capture.status == "planned" or "token_id" not in capture:
        return
    for check in (_ids, _offsets, _coordinates):
        try:
            check(capture, findings)
        except StoreError as error:
            findings.add(capture.id, "value", f"tokens cannot be checked: {str(error).split('; run ')[0]}")


def _ids(capture: Capture, findings: Findings) -> None:
    ids, size = capture.token_id, capture.metadata.model.vocabulary_size
    path = f"{capture.id}/token_id"
    findings.cells(
        path, f"outside -1 … {size - 1}", (ids < -1) | (ids >= size), lambda t: (path, f"token {t} has id {ids[t]}")
    )
    findings.count("tokens", len(ids))


def _offsets(capture: Capture, findings: Findings) -> None:
    path = f"{capture.id}/token_byte_offset"
    offset = np.asarray(capture["token_byte_offset"][:]).astype(np.int64)
    findings.cells(path, "offsets do not grow", np.diff(offset) < 0, lambda t: (path, f"token {t}"))
    held = capture["token_bytes"].shape[0]
    if len(offset) and offset[0] != 0:
        findings.add(path, "value", f"first offset is {offset[0]}, expected 0")
    if len(offset) and (offset[-1] > held or (capture.status == "complete" and offset[-1] != held)):
        findings.add(path, "value", f"last offset is {offset[-1]}, but token_bytes holds {held}")


def _coordinates(capture: Capture, findings: Findings) -> None:
    for spec in ARRAYS:
        if spec.axes != (spec.name,) or spec.name not in capture:
            continue
        path = f"{capture.id}/{spec.name}"
        numbers = np.asarray(capture[spec.name][:])
        findings.cells(path, "numbers do not grow", np.diff(numbers) <= 0, lambda i, path=path: (path, f"entry {i}"))
        if len(numbers) and numbers[0] < 0:
            findings.add(path, "value", f"begins with {numbers[0]}")
        if spec.name == "generated" and len(numbers):
            expected = np.asarray(capture["token"][capture.n_prompt - 1 :])
            if not np.array_equal(numbers, expected):
                findings.add(path, "value", f"begins with {numbers[0]}, expected {expected[:1]} and on")
