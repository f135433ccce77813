"""What lenses read, as a table: a row for each capture, lens, token, depth and choice. Plain numpy, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.arrays import MID, reading
from attnlens.schemas.errors import StoreError
from attnlens.store.reader import Capture

BLOCK_ROWS = 1 << 16
"""About so many rows are in memory at a time."""
FIRST_LENS = "logit"
"""The lens that reads the stream inside layers."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its name, dtype, unit and meaning. Those named as an array of the store hold what it holds."""

    name: str
    dtype: str
    unit: str
    meaning: str


COLUMNS = (
    Column(name="capture", dtype="string", unit="name", meaning="name of the capture"),
    Column(name="prompt_id", dtype="string", unit="name", meaning="what the user calls the prompt"),
    Column(name="lens", dtype="string", unit="name", meaning="the lens that read this"),
    Column(name="token", dtype="int32", unit="index", meaning="position of the token whose stream is read"),
    Column(name="token_id", dtype="int32", unit="vocabulary id", meaning="that token"),
    Column(name="token_text", dtype="string", unit="text", meaning="its display text"),
    Column(name="token_special", dtype="bool", unit="flag", meaning="the tokenizer calls it special"),
    Column(name="generated", dtype="bool", unit="flag", meaning="it came after the prompt"),
    Column(name="depth", dtype="int32", unit="index",
           meaning="index of the residual stream: 0 enters layer 0, l leaves layer l-1; where mid, index of the layer"),
    Column(name="mid", dtype="bool", unit="flag",
           meaning="the stream inside layer `depth` was read, after its attention and before its MLP"),
    Column(name="rank", dtype="int32", unit="rank", meaning="how many tokens the lens holds more probable"),
    Column(name="tracked", dtype="bool", unit="flag",
           meaning="the row is of a token that was chosen to be followed, whatever its rank"),
    Column(name="lens_token", dtype="int32", unit="vocabulary id", meaning="the next token that the row is about"),
    Column(name="lens_text", dtype="string", unit="text", meaning="its display text"),
    Column(name="lens_probability", dtype="float32", unit="probability", meaning="its probability by the lens"),
    Column(name="lens_entropy", dtype="float32", unit="nat", meaning="entropy of the lens's softmax"),
    Column(name="next_rank", dtype="int32", unit="rank",
           meaning="how many tokens the lens holds more probable than the token that really came next"),
    Column(name="next_probability", dtype="float32", unit="probability",
           meaning="probability that the lens gives to the token that really came next"),
    Column(name="model_probability", dtype="float32", unit="probability",
           meaning="probability that the model's own output gave to the token that really came next"),
)  # fmt: skip

Rows = Mapping[str, NDArray[Any]]
"""Column → cells. Absent is None among texts and in masked arrays masked."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Arrays that rows are made of: by depth, token and choice, and by depth and token alone."""

    lens: str
    ids: str
    probability: str
    entropy: str
    next_rank: str
    next_probability: str
    rank: str | None = None
    mid: bool = False


def lens_rows(capture: Capture) -> Iterator[Rows]:
    """All rows of a capture, by lens, then token, depth and rank. Rows of what is not there are left out.

    Raises:
        StoreError: a chunk is damaged, or an id has no text.
    """
    for source in _sources(capture):
        yield from _Reader(capture, source).blocks()


def _sources(capture: Capture) -> Iterator[_Source]:
    for number, lens in enumerate(capture.lens_names):
        own = lens if number else None
        source = _Source(
            lens=lens,
            ids=reading("lens_token", own),
            probability=reading("lens_probability", own),
            entropy=reading("lens_entropy", own),
            next_rank=reading("next_rank", own),
            next_probability=reading("next_probability", own),
        )
        if source.ids in capture or source.probability in capture:
            yield source
        rank, likely = reading("tracked_rank", own), reading("tracked_probability", own)
        if "tracked_id" in capture and (rank in capture or likely in capture):
            yield replace(source, ids="tracked_id", rank=rank, probability=likely)
    if MID["lens_token"] in capture or MID["lens_probability"] in capture:
        yield _Source(
            lens=FIRST_LENS,
            ids=MID["lens_token"],
            probability=MID["lens_probability"],
            entropy=MID["lens_entropy"],
            next_rank=MID["next_rank"],
            next_probability=MID["next_probability"],
            mid=True,
        )


class _Reader:
    """Rows of one source, a block of tokens after the other."""

    def __init__(self, capture: Capture, source: _Source) -> None:
        self._capture, self._source = capture, source
        tracked = source.rank is not None
        names = [source.rank, source.probability] if tracked else [source.ids, source.probability]
        self._grid = next(capture[name] for name in names if name is not None and name in capture)
        self._depths, _, self._choices = self._grid.shape
        self._texts = Texts(capture, tracked=tracked)

    def blocks(self) -> Iterator[Rows]:
        """Blocks of rows, with nothing in them that is absent."""
        cells = max(1, self._depths * self._choices)
        step = max(1, BLOCK_ROWS // cells)
        chunk = self._grid.chunks[1]
        step = step // chunk * chunk or step
        stop = min(self._capture.committed, self._grid.shape[1])
        for first in range(self._capture.lens_start, stop, step):
            tokens = slice(first, min(stop, first + step))
            if cells <= BLOCK_ROWS:
                yield self._rows(tokens, slice(0, self._depths))
                continue
            deep = max(1, BLOCK_ROWS // max(1, self._choices))
            for low in range(0, self._depths, deep):
                yield self._rows(tokens, slice(low, min(self._depths, low + deep)))

    def _rows(self, tokens: slice, depths: slice) -> Rows:
        capture, source = self._capture, self._source
        shape = (tokens.stop - tokens.start, depths.stop - depths.start, self._choices)
        tracked = source.rank is not None

        def along(values: NDArray[Any], *axes: int) -> NDArray[Any]:
            """Values along some of the axes token, depth, choice, repeated along the others."""
            return np.broadcast_to(np.expand_dims(values, [axis for axis in range(3) if axis not in axes]), shape)

        def read(name: str, *axes: int) -> NDArray[Any]:
            """An array (depth, token, …), absent cells as its fill values."""
            if name not in capture:
                return np.broadcast_to(np.float32(np.nan), shape)
            return along(capture[name][depths, tokens].swapaxes(0, 1), *axes)

        probability = read(source.probability, 0, 1, 2)
        if tracked:
            ids = along(capture["tracked_id"][:], 2)
            rank = read(source.rank or "", 0, 1, 2)
            there = ~_absent(rank) | ~_absent(probability)
        else:
            ids = read(source.ids, 0, 1, 2)
            rank = along(np.arange(self._choices, dtype=np.int32), 2)
            there = ~_absent(ids) | ~_absent(probability)
        axis = "layer" if source.mid else "depth"
        number = np.arange(tokens.start, tokens.stop)
        numbers = {
            "token": along(_coordinate(capture, "token", tokens), 0),
            "token_id": along(capture["token_id"][tokens], 0),
            "token_special": along(capture["token_special"][tokens], 0),
            "generated": along(number >= capture.n_prompt, 0),
            "depth": along(_coordinate(capture, axis, depths), 1),
            "mid": np.broadcast_to(source.mid, shape),
            "rank": rank,
            "tracked": np.broadcast_to(tracked, shape),
            "lens_token": ids,
            "lens_probability": probability,
            "lens_entropy": read(source.entropy, 0, 1),
            "next_rank": read(source.next_rank, 0, 1),
            "next_probability": read(source.next_probability, 0, 1),
            "model_probability": along(_model_probability(capture, tokens), 0),
        }
        found: dict[str, NDArray[Any]] = {}
        for column in COLUMNS:
            if column.name in numbers:
                cells = numbers[column.name][there]
                absent = _absent(cells)
                found[column.name] = np.ma.MaskedArray(np.where(absent, 0, cells).astype(column.dtype), absent)
        known = capture["token_id"][tokens] >= 0
        texts = capture["token_text"][tokens].astype(object)
        texts[~known] = None
        found["token_text"] = along(texts, 0)[there]
        found["token_special"] = np.ma.MaskedArray(
            found["token_special"], np.ma.getmaskarray(found["token_id"]), copy=False
        )
        found["lens_text"] = self._texts.of(found["lens_token"])
        whole = {"capture": capture.id, "prompt_id": capture.metadata.prompt_id, "lens": source.lens}
        for name, value in whole.items():
            found[name] = np.full(int(there.sum()), value, object)
        return {column.name: found[column.name] for column in COLUMNS}


class Texts:
    """Display texts of the ids that lenses use."""

    def __init__(self, capture: Capture, *, tracked: bool = False) -> None:
        self._where = f"{capture.id}/{'tracked' if tracked else 'vocabulary'}_id"
        known: Mapping[int, str] = {}
        if tracked and "tracked_text" in capture:
            ids, texts = capture["tracked_id"][:], capture["tracked_text"][:]
            known = {int(number): str(text) for number, text in zip(ids, texts, strict=False)}
        elif not tracked and {"vocabulary_id", "vocabulary_text"} <= set(capture.names):
            known = capture.vocabulary
        self._ids = np.asarray(sorted(known), np.int64)
        self._texts = np.asarray([*(known[number] for number in self._ids.tolist()), None], object)

    def of(self, ids: NDArray[Any]) -> NDArray[Any]:
        """The text of each of some ids, a masked array: None where it is masked.

        Raises:
            StoreError: an id is not in the list.
        """
        absent = np.ma.getmaskarray(ids)
        plain = np.ma.getdata(ids)
        if not len(self._ids):
            return np.full(len(plain), None, object)
        at = np.minimum(np.searchsorted(self._ids, plain), len(self._ids) - 1)
        wrong = (self._ids[at] != plain) & ~absent
        if wrong.any():
            raise StoreError(f"{self._where}: has no id {int(plain[wrong][0])}, which a lens reads; run `lens verify`")
        found: NDArray[Any] = self._texts[np.where(absent, len(self._ids), at)]
        return found


def _absent(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which cells hold the fill value."""
    absent: NDArray[np.bool_] = np.zeros(values.shape, np.bool_)
    if values.dtype.kind == "f":
        absent = np.isnan(values)
    elif values.dtype.kind == "i":
        absent = np.less(values, 0)
    return absent


def _coordinate(capture: Capture, axis: str, part: slice) -> NDArray[Any]:
    """The numbers of an axis; they count from 0 where the store does not say."""
    return capture[axis][part] if axis in capture else np.arange(part.start, part.stop, dtype=np.int32)


def _model_probability(capture: Capture, tokens: slice) -> NDArray[Any]:
    if "model_probability" not in capture:
        return np.full(tokens.stop - tokens.start, np.nan, np.float32)
    return capture["model_probability"][tokens]
