"""Are the timeline, its bytes and its coordinates in order?"""

from __future__ import annotations

import re

import numpy as np

from attnlens.schemas.arrays import ARRAYS
from attnlens.schemas.errors import StoreError
from attnlens.store.findings import Findings
from attnlens.store.reader import Capture
from attnlens.store.spelling import spelled

NO_BYTES = re.compile(r"<.*>", re.DOTALL)
"""The text of a token that has no bytes, as `<unused 151700>`, if it has one."""
SHOWN = 40
"""Characters of a text that a problem quotes."""


def check_tokens(capture: Capture, findings: Findings) -> None:
    """Ids inside the vocabulary, byte offsets that grow and cover all bytes, coordinates that count upwards.

    And one text for each id, which its bytes spell.
    """
    if capture.status == "planned" or "token_id" not in capture:
        return
    for check in (_ids, _offsets, _texts, _coordinates):
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


def _texts(capture: Capture, findings: Findings) -> None:
    """Do bytes spell the text of each token, and has an id the same text and bytes wherever it is?"""
    path, count = f"{capture.id}/token_text", capture.n_token
    offset = np.asarray(capture["token_byte_offset"][:]).astype(np.int64)
    if len(offset) != count + 1 or offset[0] != 0 or (np.diff(offset) < 0).any():
        return  # told by `_offsets`
    raw = np.asarray(capture["token_bytes"][: int(offset[-1])]).tobytes()
    ids, texts = capture.token_id.tolist(), capture.token_text
    known: dict[int, tuple[str, str]] = {}
    data: dict[int, tuple[bytes, str]] = {}
    spells, without, other, differs = (np.zeros(count, np.bool_) for _ in range(4))
    for token, (number, text) in enumerate(zip(ids, texts, strict=True)):
        own = raw[offset[token] : offset[token + 1]]
        if number < 0:
            without[token] = bool(text or own)
            continue
        spells[token] = text != spelled(own) if own else not (text == "" or NO_BYTES.fullmatch(text))
        other[token] = known.setdefault(number, (text, f"token {token}"))[0] != text
        differs[token] = data.setdefault(number, (own, ""))[0] != own

    def tell(token: int) -> tuple[str, str]:
        return path, f"token {token} (id {ids[token]}) is {texts[token][:SHOWN]!r}"

    findings.cells(path, "its bytes say something else", spells, tell)
    findings.cells(path, "a token without an id, redacted or not known, has no text and no bytes", without, tell)
    findings.cells(path, "the same id has another text elsewhere", other, tell)
    findings.cells(path, "the same id has other bytes elsewhere", differs, tell)
    for name in ("vocabulary", "tracked"):
        if {f"{name}_id", f"{name}_text"} <= set(capture.names):
            _entries(capture, name, known, findings)
    findings.count("texts", count)


def _entries(capture: Capture, name: str, known: dict[int, tuple[str, str]], findings: Findings) -> None:
    """Are ids of a list in the vocabulary, and their texts those that the ids have elsewhere? `known` grows by them."""
    path, size = f"{capture.id}/{name}_text", capture.metadata.model.vocabulary_size
    ids, texts = np.asarray(capture[f"{name}_id"][:]), [str(text) for text in capture[f"{name}_text"][:]]
    ids = ids[: len(texts)]  # one may have been made longer before the other
    wrong = np.zeros(len(ids), np.bool_)
    first: dict[int, str] = {}
    for entry in np.flatnonzero(ids >= 0).tolist():
        number, text = int(ids[entry]), texts[entry]
        found, where = known.setdefault(number, (text, f"{name}_text"))
        wrong[entry] = found != text
        if wrong[entry]:
            first[entry] = f"entry {entry} (id {number}) is {text[:SHOWN]!r}, {where} {found[:SHOWN]!r}"
    findings.cells(path, "the same id has another text elsewhere", wrong, lambda entry: (path, first[entry]))
    beyond = (ids < -1) | (ids >= size)
    path = f"{capture.id}/{name}_id"
    findings.cells(path, f"outside -1 … {size - 1}", beyond, lambda entry: (path, f"entry {entry} is {ids[entry]}"))


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
