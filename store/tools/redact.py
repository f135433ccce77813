"""`lens crop --redact`: no trace of a span of text. docs/security.md says what goes, why, and what cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import InputError
from attnlens.schemas.metadata import LABEL_LIMIT, CaptureMetadata
from attnlens.schemas.ranges import is_list, parse_ranges, runs_of
from attnlens.schemas.sensitivity import SENSITIVITY, sensitivity_of
from attnlens.store.chunks import read
from attnlens.store.reader import Capture
from attnlens.store.tools.rewrite import Cells, Change, part_of

MARK = "[redacted]"
TEXT, TOKENS = "text:", "tokens:"
SHORT = 3
"""Pieces of fewer letters than this say too little to be looked for inside other words."""
FREE = (
    "prompt", "completion", "messages", "tools", "label", "notes", "error", "prompt_id", "self_checks", "sampling"
)  # fmt: skip
"""Fields of the metadata that may quote the text."""


class Redaction:
    """What must go from one capture: `tokens`, a mask over the timeline, and `ids` of the vocabulary that spell it."""

    def __init__(self, capture: Capture, tokens: NDArray[np.bool_], texts: Sequence[str]) -> None:
        self.tokens = tokens
        self._texts = [text for text in dict.fromkeys(part.strip() for part in texts) if text]
        self._low = max(1, -(-capture.metadata.model.n_layer // 2))
        before = np.append(tokens[1:], False)
        self._around = tokens | before
        spelled = {_plain(capture.token_text[at]) for at in np.flatnonzero(tokens)} - {""}
        wholes = {_plain(text) for text in self._texts} - {""}
        own = set(capture.token_id[tokens].tolist()) - {-1}
        known = capture.vocabulary if "vocabulary_id" in capture else {}
        self.ids = own | {number for number, text in known.items() if _spells(_plain(text), spelled, wholes)}
        self._ids = np.asarray(sorted(self.ids), np.int64)

    def runs(self, before: list[list[int]]) -> list[list[int]]:
        """The redacted tokens as runs, those of an earlier redaction included."""
        numbers = set(np.flatnonzero(self.tokens).tolist()) | {n for low, high in before for n in range(low, high)}
        return runs_of(sorted(numbers))

    def dropped(self, capture: Capture) -> set[str]:
        """Arrays that go as a whole: unknown ones, and those of followed tokens if one of these is to go."""
        unknown = {name for name in capture.names if name not in capture.specs}
        if "tracked_id" not in capture or not self.ids & set(capture["tracked_id"][:].tolist()):
            return unknown
        return unknown | {
            name
            for name, spec in capture.specs.items()
            if name in capture and SENSITIVITY[spec.base or spec.name].tells == "tracked"
        }

    def change(self, capture: Capture, name: str) -> Change | None:
        """What is done to the cells of an array, None if nothing."""
        array, spec = capture[name], capture.specs[name]
        about = sensitivity_of(spec)
        axis = next((number for number, axis in enumerate(array.axes) if axis in ("token", "key")), None)
        if axis is None or about.tells in ("nothing", "vocabulary", "weights"):
            return None
        gone = self._around if about.tells in ("next", "stream") else self.tokens
        low = self._low if about.tells == "projection" else None
        ids = capture[about.ids] if about.ids is not None else None
        fill = array.raw_fill

        def change(cells: Cells, region: tuple[slice, ...]) -> Cells:
            cells = cells.copy()
            where: list[Any] = [slice(None)] * cells.ndim
            where[axis] = np.flatnonzero(part_of(gone, region[axis]))
            if low is not None:
                layer = array.axes.index("layer")
                where[layer] = slice(0, max(0, low - region[layer].start))
            cells[tuple(where)] = fill
            if ids is not None:
                spelled = read(ids.zarr, region)
                cells[np.isin(spelled, self._ids)] = fill
            return cells

        return change

    def metadata(self, about: CaptureMetadata) -> CaptureMetadata:
        """The metadata without the texts. What vouched for the whole text vouches no more."""
        values = about.model_dump(mode="json")
        for message in values["messages"] or ():
            message["content"] = self._joined(message.get("content"))
        for name in FREE:
            values[name] = self._scrub(values[name])
        if values["label"] is not None:  # the mark may be longer than what it stands for
            values["label"] = values["label"][:LABEL_LIMIT]
        return CaptureMetadata.model_validate(values)

    def _joined(self, content: Any) -> Any:
        """The content of a message, its parts as one if a text that goes may lie across them."""
        if not isinstance(content, list):
            return content
        whole = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if self._scrub(whole) == whole:
            return content
        return [{"type": "text", "text": whole}]

    def _scrub(self, value: Any) -> Any:
        match value:
            case str():
                for text in sorted(self._texts, key=len, reverse=True):
                    value = re.sub(re.escape(text), MARK, value, flags=re.IGNORECASE)
                return value
            case dict():
                return {self._scrub(key): self._scrub(item) for key, item in value.items()}
            case list():
                return [self._scrub(item) for item in value]
            case _:
                return value


def redaction(capture: Capture, spans: Sequence[str]) -> Redaction | None:
    """What spans, texts or ranges of tokens, mean in one capture; None if there are none.

    Wherever the text of a span occurs again, in whatever case, it goes too.

    Raises:
        InputError: tokens outside the timeline, or a span that may be tokens as well as a text that is there. A text
            that does not occur here is looked for all the same.
    """
    if not spans:
        return None
    data = b"".join(map(capture.token_bytes, range(capture.n_token)))
    mask, texts = np.zeros(capture.n_token, bool), []
    for span in spans:
        if _means_tokens(capture, data, span):
            chosen = parse_ranges(span.removeprefix(TOKENS), capture.n_token, option="--redact", thing="token")
            mask[list(chosen)] = True
            texts += [b"".join(map(capture.token_bytes, range(low, high))).decode("utf-8", "replace")
                      for low, high in runs_of(chosen)]  # fmt: skip
        else:
            texts.append(span.removeprefix(TEXT))
    edges = np.cumsum([0, *(len(capture.token_bytes(token)) for token in range(capture.n_token))])
    for text in texts:
        if len(text.strip()) > 1:
            for start, stop in _occurrences(data, text.strip()):
                mask[(edges[:-1] < stop) & (edges[1:] > start)] = True
    texts += [b"".join(map(capture.token_bytes, range(low, high))).decode("utf-8", "replace")
              for low, high in runs_of(np.flatnonzero(mask).tolist())]  # fmt: skip
    return Redaction(capture, mask, texts)


def _means_tokens(capture: Capture, data: bytes, span: str) -> bool:
    """Whether a span lists tokens: `tokens:3,5-7`, or `3,5-7` where these characters are no text of the capture.

    `data`: the bytes of all its tokens.
    """
    if span.startswith((TEXT, TOKENS)) or not is_list(span):
        return span.startswith(TOKENS)
    if span.strip().encode() in data:
        raise InputError(
            f"--redact {span}: capture {capture.id} has this text, and it lists tokens, too; expected {TEXT}{span} or "
            f"{TOKENS}{span}"
        )
    return True


def _occurrences(data: bytes, text: str) -> Iterable[tuple[int, int]]:
    forms = {text, text.lower(), text.upper(), text.title(), text.capitalize()}
    for form in forms:
        for match in re.finditer(re.escape(form.encode("utf-8", "replace")), data, re.IGNORECASE):
            yield match.span()


def _plain(text: str) -> str:
    """Text by which tokens are compared: no case, no space, no mark of a word's beginning."""
    return text.replace("\u2581", " ").replace("\u0120", " ").strip().casefold()


def _spells(text: str, pieces: set[str], wholes: set[str]) -> bool:
    """Whether a token's text is a piece of what goes, holds one, or is a part of the whole."""
    if not text:
        return False
    if text in pieces or any(whole in text for whole in wholes):
        return True
    long = len(text) >= SHORT
    return long and (any(text in whole for whole in wholes) or any(p in text for p in pieces if len(p) >= SHORT))
