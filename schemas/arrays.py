"""The table of arrays in a capture. Writer, reader, validator and docs/format.md all follow it.

Axis names are the field's: token (a position on the one timeline prompt + generation), query (the token that
looks), key (the token looked at), layer, head, depth (index of the residual stream, 0 … L), generated (the queries
from the last prompt token on), rank (0 is the most probable), entry (of the vocabulary), edge (token boundaries),
byte, file, kv_head (a head of keys, shared by n_head / n_kv_head neighbouring heads), feature (of a query or key).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DType = Literal["bool", "uint8", "uint16", "int32", "float16", "float32", "string", "model"]
Axis = Literal["token", "query", "key", "layer", "head", "kv_head", "feature", "depth", "generated", "rank", "entry",
               "edge", "byte", "file"]  # fmt: skip
Presence = Literal["always", "dense", "qk", "lens", "attention", "finished"]
"""When an array must exist: always; in dense or qk mode; with a lens; with attention; once the capture is complete."""
VectorDType = Literal["float32", "float16", "bfloat16"]
"""What queries and keys may be: the model's own dtype, bit for bit."""

VECTOR_STORAGE: Mapping[VectorDType, DType] = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""What a dtype "model" is on the disk. Zarr v3 has no bfloat16: its bits are kept, and the array's attribute
`bits_of` says so. A bfloat16 is the upper half of a float32."""

FILL: Mapping[DType, float | int | bool | str] = {
    "bool": False,
    "uint8": 0,
    "uint16": 0x7FC0,
    "int32": -1,
    "float16": math.nan,
    "float32": math.nan,
    "string": "",
    "model": math.nan,
}
"""Fill values, so that a missing shard never reads as data; that of uint16 is the bits of a bfloat16 NaN."""

TIMELINE: frozenset[Axis] = frozenset({"token", "query", "key"})
"""Axes of length T, the number of tokens of prompt and generation together."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a capture: name, named axes, dtype, unit, and when it is there."""

    name: str
    axes: tuple[Axis, ...]
    dtype: DType
    unit: str
    presence: Presence
    meaning: str

    def storage(self, vectors: VectorDType | None) -> DType:
        """The dtype on the disk, in a capture whose queries and keys are `vectors`."""
        return VECTOR_STORAGE[vectors or "float32"] if self.dtype == "model" else self.dtype


def _coordinate(axis: Axis, meaning: str, presence: Presence = "always") -> ArraySpec:
    return ArraySpec(name=axis, axes=(axis,), dtype="int32", unit="index", presence=presence, meaning=meaning)


ARRAYS: tuple[ArraySpec, ...] = (
    _coordinate("token", "position on the timeline, in the numbering of the original capture"),
    _coordinate("query", "position of the token that looks", "attention"),
    _coordinate("key", "position of the token looked at", "attention"),
    _coordinate("layer", "index of the transformer layer", "attention"),
    _coordinate("head", "index of the attention head", "attention"),
    _coordinate("kv_head", "index of the head of keys", "qk"),
    _coordinate("depth", "index of the residual stream: 0 enters layer 0, l leaves layer l-1", "lens"),
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
    ArraySpec(name="attention_q", axes=("token", "layer", "head", "feature"), dtype="model", unit="activation",
              presence="qk", meaning="queries as the attention function got them, after rotation and norms; layers "
                                     "without attention are NaN"),
    ArraySpec(name="attention_k", axes=("token", "layer", "kv_head", "feature"), dtype="model", unit="activation",
              presence="qk", meaning="keys as the attention function got them, after rotation and norms; layers "
                                     "without keys of their own are NaN"),
    ArraySpec(name="attention_max", axes=("generated", "layer", "key"), dtype="float16", unit="probability",
              presence="attention", meaning="maximum over heads"),
    ArraySpec(name="attention_mean", axes=("generated", "layer", "key"), dtype="float16", unit="probability",
              presence="attention", meaning="mean over heads"),
    ArraySpec(name="manifest_file", axes=("file",), dtype="string", unit="path", presence="finished",
              meaning="every file of the capture but its own zarr.json and the manifest's, relative to the capture"),
    ArraySpec(name="manifest_sha256", axes=("file",), dtype="string", unit="hex digest", presence="finished",
              meaning="sha256 of that file"),
)  # fmt: skip

ARRAY: Mapping[str, ArraySpec] = {spec.name: spec for spec in ARRAYS}


def wanted(spec: ArraySpec, *, mode: str | None, lens: bool, complete: bool) -> bool:
    """Whether a capture with this attention mode (None: no attention), lens and status must have the array."""
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
        case "finished":
            return complete
