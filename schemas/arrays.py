"""The table of arrays in a capture. Writer, reader, validator and docs/format.md all follow it.

Axis names are the field's: token (a position on the one timeline prompt + generation), query (the token that
looks), key (the token looked at), layer, head, depth (index of the residual stream, 0 … L), generated (the queries
from the last prompt token on), rank (0 is the most probable), entry (of the vocabulary), edge (token boundaries),
tracked (tokens that were chosen to be followed), feature (of the residual stream), kv_head (a head of keys, shared by
n_head / n_kv_head neighbouring heads), head_feature (of a query or key), byte, file, chunk, digest_byte (of a sha256).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

DType = Literal["bool", "uint8", "int32", "float16", "float32", "string", "model"]
"""`model`: the dtype in which the model computes, one of MODEL_DTYPES."""
Axis = Literal[
    "token", "query", "key", "layer", "head", "depth", "generated", "rank", "entry", "edge", "byte", "file", "tracked",
    "feature", "kv_head", "head_feature", "chunk", "digest_byte",
]  # fmt: skip
Presence = Literal["always", "dense", "qk", "lens", "depth", "attention", "finished", "evidence", "proof"]
"""When an array must exist: always; in dense or qk mode; with a lens; with a lens or an array along depth; with
attention; once the capture is complete; where the capture's `evidence` names it; never
(proof: it may be there once the capture is complete)."""

MODEL_DTYPES: Mapping[str, str] = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""Dtype of the model → dtype of the array. Zarr has no bfloat16: its bits are kept as uint16, and the array's attribute
`bits` says "bfloat16", its `encoding` in which order."""

FILL: Mapping[DType, float | int | bool | str] = {
    "bool": False,
    "uint8": 0,
    "int32": -1,
    "float16": math.nan,
    "float32": math.nan,
    "string": "",
    "model": math.nan,
}
"""Fill values, so that a missing shard never reads as data."""

TIMELINE: frozenset[Axis] = frozenset({"token", "query", "key"})
"""Axes of length T, the number of tokens of prompt and generation together."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a capture: name, named axes, dtype, unit, and when it is there.

    `base`: the array that this one repeats for a further lens; None for those of the table.
    """

    name: str
    axes: tuple[Axis, ...]
    dtype: DType
    unit: str
    presence: Presence
    meaning: str
    base: str | None = None

    @property
    def fill(self) -> float | int | bool | str:
        """The value of a cell that was never written."""
        return FILL[self.dtype]


def _coordinate(axis: Axis, meaning: str, presence: Presence = "always") -> ArraySpec:
    return ArraySpec(name=axis, axes=(axis,), dtype="int32", unit="index", presence=presence, meaning=meaning)


ARRAYS: tuple[ArraySpec, ...] = (
    _coordinate("token", "position on the timeline, in the numbering of the original capture"),
    _coordinate("query", "position of the token that looks", "attention"),
    _coordinate("key", "position of the token looked at", "attention"),
    _coordinate("layer", "index of the transformer layer", "attention"),
    _coordinate("head", "index of the attention head", "attention"),
    _coordinate("kv_head", "index of the head of keys", "qk"),
    _coordinate("depth", "index of the residual stream: 0 enters layer 0, l leaves layer l-1", "depth"),
    _coordinate("generated", "positions of the queries from the last prompt token on", "attention"),
    ArraySpec(name="token_id", axes=("token",), dtype="int32", unit="vocabulary id", presence="always",
              meaning="the timeline: prompt, then generated, the stop token included; -1 = redacted or not yet known"),
    ArraySpec(name="token_text", axes=("token",), dtype="string", unit="text", presence="always",
              meaning="display text of the token; bytes that are no UTF-8 on their own are spelled <E2>"),
    ArraySpec(name="token_special", axes=("token",), dtype="bool", unit="flag", presence="always",
              meaning="the tokenizer calls this token special (begin, end, role header, padding)"),
    ArraySpec(name="token_bytes", axes=("byte",), dtype="uint8", unit="byte", presence="always",
              meaning="exact bytes of all tokens, one after the other"),
    ArraySpec(name="token_byte_offset", axes=("edge",), dtype="int32", unit="byte", presence="always",
              meaning="token t owns token_bytes[offset[t]:offset[t+1]]; length T + 1"),
    ArraySpec(name="vocabulary_id", axes=("entry",), dtype="int32", unit="vocabulary id", presence="lens",
              meaning="every id that a lens array uses, each once, in order of first use"),
    ArraySpec(name="vocabulary_text", axes=("entry",), dtype="string", unit="text", presence="lens",
              meaning="display text of vocabulary_id"),
    ArraySpec(name="lens_token", axes=("depth", "token", "rank"), dtype="int32", unit="vocabulary id", presence="lens",
              meaning="the most probable next tokens that the lens reads from the residual stream, rank 0 first"),
    ArraySpec(name="lens_probability", axes=("depth", "token", "rank"), dtype="float32", unit="probability",
              presence="lens", meaning="their probabilities, softmax over the full vocabulary"),
    ArraySpec(name="lens_entropy", axes=("depth", "token"), dtype="float32", unit="nat", presence="lens",
              meaning="entropy of that softmax"),
    ArraySpec(name="next_rank", axes=("depth", "token"), dtype="int32", unit="rank", presence="lens",
              meaning="how many tokens the lens holds more probable than the token that really came next"),
    ArraySpec(name="next_probability", axes=("depth", "token"), dtype="float32", unit="probability", presence="lens",
              meaning="probability that the lens gives to the token that really came next"),
    ArraySpec(name="model_probability", axes=("token",), dtype="float32", unit="probability", presence="always",
              meaning="probability that the model's own output gave to the token that really came next, before "
                      "temperature and top-p; NaN where the model's output was not computed"),
    ArraySpec(name="attention_weight", axes=("layer", "head", "query", "key"), dtype="float16", unit="probability",
              presence="dense", meaning="softmax attention of every head; layers without attention are NaN"),
    ArraySpec(name="attention_q", axes=("token", "layer", "head", "head_feature"), dtype="model", unit="activation",
              presence="qk", meaning="queries as the attention function got them, after rotation and norms; layers "
                                     "without attention are NaN"),
    ArraySpec(name="attention_k", axes=("token", "layer", "kv_head", "head_feature"), dtype="model", unit="activation",
              presence="qk", meaning="keys as the attention function got them, after rotation and norms; layers "
                                     "without keys of their own are NaN"),
    ArraySpec(name="attention_max", axes=("generated", "layer", "key"), dtype="float16", unit="probability",
              presence="attention", meaning="maximum over heads"),
    ArraySpec(name="attention_mean", axes=("generated", "layer", "key"), dtype="float16", unit="probability",
              presence="attention", meaning="mean over heads"),
    ArraySpec(name="value_norm", axes=("layer", "head", "key"), dtype="float32", unit="residual", presence="evidence",
              meaning="length of what a head would write if it looked at this key alone: its value through the head's "
                      "part of the output projection, without bias; layers without attention are NaN"),
    ArraySpec(name="residual", axes=("depth", "token", "feature"), dtype="model", unit="residual", presence="evidence",
              meaning="the residual stream itself, bit for bit"),
    ArraySpec(name="tracked_id", axes=("tracked",), dtype="int32", unit="vocabulary id", presence="evidence",
              meaning="tokens that were chosen to be followed, in the order given"),
    ArraySpec(name="tracked_text", axes=("tracked",), dtype="string", unit="text", presence="evidence",
              meaning="their display text"),
    ArraySpec(name="tracked_rank", axes=("depth", "token", "tracked"), dtype="int32", unit="rank", presence="evidence",
              meaning="how many tokens the lens holds more probable than this one"),
    ArraySpec(name="tracked_probability", axes=("depth", "token", "tracked"), dtype="float32", unit="probability",
              presence="evidence", meaning="probability that the lens gives to this one"),
    ArraySpec(name="mid_token", axes=("layer", "token", "rank"), dtype="int32", unit="vocabulary id",
              presence="evidence", meaning="as lens_token, by the logit lens, of the stream inside a layer: after its "
                                           "attention was added, before its MLP"),
    ArraySpec(name="mid_probability", axes=("layer", "token", "rank"), dtype="float32", unit="probability",
              presence="evidence", meaning="as lens_probability, of the same"),
    ArraySpec(name="mid_entropy", axes=("layer", "token"), dtype="float32", unit="nat", presence="evidence",
              meaning="as lens_entropy, of the same"),
    ArraySpec(name="mid_next_rank", axes=("layer", "token"), dtype="int32", unit="rank", presence="evidence",
              meaning="as next_rank, of the same"),
    ArraySpec(name="mid_next_probability", axes=("layer", "token"), dtype="float32", unit="probability",
              presence="evidence", meaning="as next_probability, of the same"),
    ArraySpec(name="manifest_file", axes=("file",), dtype="string", unit="path", presence="finished",
              meaning="every file of the capture but its own zarr.json and the manifest's, relative to the capture"),
    ArraySpec(name="manifest_sha256", axes=("file",), dtype="string", unit="hex digest", presence="finished",
              meaning="sha256 of that file"),
    ArraySpec(name="chunk_sha256", axes=("chunk", "digest_byte"), dtype="uint8", unit="digest", presence="proof",
              meaning="sha256 of chunks of large files; the attribute arrays says of which"),
)  # fmt: skip

ARRAY: Mapping[str, ArraySpec] = {spec.name: spec for spec in ARRAYS}


READINGS = ("lens_token", "lens_probability", "lens_entropy", "next_rank", "next_probability")
"""What a lens reads from every depth and token."""
TRACKED = ("tracked_id", "tracked_text", "tracked_rank", "tracked_probability")
TRACKED_READINGS = ("tracked_rank", "tracked_probability")
MID: Mapping[str, str] = {
    "lens_token": "mid_token",
    "lens_probability": "mid_probability",
    "lens_entropy": "mid_entropy",
    "next_rank": "mid_next_rank",
    "next_probability": "mid_next_probability",
}
"""Array of a lens → the same of the stream inside the layers."""
LENS_ROWS = frozenset({*READINGS, *TRACKED_READINGS, *MID.values()})
"""Arrays with what lenses read of each token: rows of tokens before a capture's `lens_first` hold the fill value."""


def group_of(name: str) -> str:
    """What arrays that are only there together are called in a capture's `absent`: "tracked", "mid", or the name."""
    return next((group for group in ("tracked", "mid") if name.startswith(f"{group}_")), name)


def reading(array: str, lens: str | None) -> str:
    """Name of an array of a lens: the first lens (None) has the names of the table, a further one its own behind it.

    `reading("lens_token", "tuned")` is "lens_token_tuned".
    """
    return array if lens is None else f"{array}_{lens}"


def specs(lenses: Sequence[str] = ()) -> Iterator[ArraySpec]:
    """The table, and after it what further lenses, named in `lenses`, add to it."""
    yield from ARRAYS
    for lens in lenses:
        for name in (*READINGS, *TRACKED_READINGS):
            yield replace(ARRAY[name], name=reading(name, lens), base=name)


def wanted(spec: ArraySpec, *, mode: str | None, lens: bool, complete: bool, evidence: Collection[str] = ()) -> bool:
    """Whether a capture with this attention mode (None: none), lens, status and evidence must have the array."""
    match spec.presence:
        case "always":
            return True
        case "dense":
            return mode == "dense"
        case "qk":
            return mode == "qk"
        case "attention":
            return mode is not None
        case "lens":
            return lens
        case "depth":
            return lens or any("depth" in ARRAY[name].axes for name in evidence if name in ARRAY)
        case "finished":
            return complete
        case "proof":
            return False
        case "evidence":
            return (spec.base or spec.name) in evidence
