"""How attention is kept: every weight, quick to read, or queries and keys, which grow with T and not with T²."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnlens.capture.probe import Probed
from attnlens.schemas.arrays import MODEL_DTYPES
from attnlens.schemas.errors import ModelError, Setting
from attnlens.schemas.metadata import LayerInfo, Mode
from attnlens.schemas.qk import attending
from attnlens.store.layout import MIB

SMALL_BYTES = 256 * MIB
"""Weights of up to this size are stored without a second thought."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The way that was taken, and why, where the program chose it."""

    mode: Mode
    choice: str | None = None


def choose_encoding(wish: str, probed: Probed, length: int, name: str) -> Encoding:
    """What to do about a `wish` (dense, qk or auto) for a text of up to `length` tokens; `name` is the model's.

    Raises:
        ModelError: queries and keys were asked for, and would not say where this model's tokens look.
    """
    if wish == "dense":
        return Encoding(mode="dense")
    if wish == "qk":
        if probed.qk_refusal is not None:
            why = f"{name}: {probed.qk_refusal}; queries and keys do not suffice, use "
            raise ModelError(why, Setting("attention='dense'", "--attention dense"))
        return Encoding(mode="qk")
    dense = dense_bytes(probed.table, length)
    if probed.qk_refusal is not None:
        return Encoding(mode="dense", choice=f"auto: {_size(dense)} of weights; no qk, because {probed.qk_refusal}")
    qk = qk_bytes(probed.table, length, probed.vector_dtype or "float32")
    if dense <= max(SMALL_BYTES, qk):
        return Encoding(mode="dense", choice=f"auto: {_size(dense)} of weights, at most {length} tokens")
    choice = f"auto: {_size(qk)} of queries and keys instead of {_size(dense)} of weights, at most {length} tokens"
    return Encoding(mode="qk", choice=choice)


def dense_bytes(table: Sequence[LayerInfo], length: int) -> int:
    """Weights of `length` tokens before compression: a float16 for each head and pair of tokens, without the future."""
    return sum(layer.n_head for layer in attending(table)) * length * (length + 1)


def qk_bytes(table: Sequence[LayerInfo], length: int, dtype: str) -> int:
    """Queries and keys of `length` tokens before compression."""
    numbers = sum(
        layer.key_features * (layer.n_head + (layer.n_kv_head if layer.key_source is None else 0))
        for layer in attending(table)
    )
    return numbers * length * np.dtype(MODEL_DTYPES[dtype]).itemsize


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
