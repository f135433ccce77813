"""How attention is kept: every weight, quick to read, or queries and keys, which grow with T and not with T²."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from attnlens.capture.feeding import CallStyle, feeds_again_at
from attnlens.capture.plan import Plan
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


def choose_encoding(wish: str, probed: Probed, length: int, name: str, fed_again_at: int | None = None) -> Encoding:
    """What to do about a `wish` (dense, qk or auto) for a text of up to `length` tokens; `name` is the model's.

    `fed_again_at`: the token at which the model's own generation would make all keys anew, if it comes to that.

    Raises:
        ModelError: queries and keys were asked for, and would not say where this model's tokens look.
    """
    if wish == "dense":
        return Encoding(mode="dense")
    if wish == "qk":
        if probed.qk_refusal is not None:
            why = f"{name}: {probed.qk_refusal}; queries and keys do not suffice, use "
            raise ModelError(why, Setting("attention='dense'", "--attention dense"))
        if fed_again_at is not None:
            why = f"{name}: {_made_anew(fed_again_at)}; queries and keys would not say where tokens before it looked"
            instead = Setting("attention='dense'", "--attention dense")
            raise ModelError(why, ", use ", instead, ", or fewer ", Setting("max_new_tokens"))
        return Encoding(mode="qk")
    dense = dense_bytes(probed.table, length)
    if probed.qk_refusal is not None:
        return Encoding(mode="dense", choice=f"auto: {_size(dense)} of weights; no qk, because {probed.qk_refusal}")
    if fed_again_at is not None:
        return Encoding(
            mode="dense", choice=f"auto: {_size(dense)} of weights; no qk, because {_made_anew(fed_again_at)}"
        )
    qk = qk_bytes(probed.table, length, probed.vector_dtype or "float32")
    if dense <= max(SMALL_BYTES, qk):
        return Encoding(mode="dense", choice=f"auto: {_size(dense)} of weights, at most {length} tokens")
    choice = f"auto: {_size(qk)} of queries and keys instead of {_size(dense)} of weights, at most {length} tokens"
    return Encoding(mode="qk", choice=choice)


def fed_again_at(model: nn.Module, style: CallStyle, plan: Plan, wish: str) -> int | None:
    """The token at which the model's own generation would make all keys anew; None where keys are not to be stored."""
    if wish == "dense" or plan.given is not None or not plan.n_prompt:
        return None
    return feeds_again_at(model, style, plan.n_prompt, plan.capacity - 1)


def _made_anew(token: int) -> str:
    return f"at token {token} its own generation drops all keys, to make them anew"


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
