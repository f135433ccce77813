"""Which arrays a capture will have, and what each is like: shape, chunks, dtype. Nothing is written.

The writer creates what this says, and `lens plan` adds it up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from attnlens.schemas.arrays import MODEL_DTYPES, TIMELINE, ArraySpec, specs, wanted
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.schemas.qk import vector_shape
from attnlens.store import layout
from attnlens.store.layout import AttentionOrder, ChunkLayout

TOKEN_BYTES, LEAST_BYTES = 16, 1 << 12
"""Room for the exact bytes of a token, and of the shortest text, until the text is known."""


@dataclass(frozen=True, kw_only=True)
class PlannedArray:
    """One array as it is created. `model_dtype`: what the model computes in, where the array keeps its dtype.

    `order`: in which order rows are written, of arrays that leave a choice.
    """

    spec: ArraySpec
    shape: tuple[int, ...]
    layout: ChunkLayout
    model_dtype: str | None = None
    order: AttentionOrder = "rows"

    @property
    def dtype(self) -> str:
        """Dtype of the array on disk."""
        return MODEL_DTYPES[self.model_dtype or "float32"] if self.spec.dtype == "model" else self.spec.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of a cell; 0 for strings, which have no fixed size."""
        return 0 if self.dtype == "string" else np.dtype(self.dtype).itemsize


def planned_arrays(
    about: CaptureMetadata, *, capacity: int, key_rows_hold: int, head_groups: int = 1
) -> Iterator[PlannedArray]:
    """Every array of the table that a capture of up to `capacity` tokens wants, as it is created.

    `key_rows_hold`: bytes of prompt rows that may wait in memory for their last layer; `head_groups`: processes
    that write the heads of their own.
    """
    sizes = axis_sizes(about, capacity)
    residual = about.residual.dtype if about.residual else None
    for spec in specs([lens.name for lens in about.lenses]):
        lens = about.lens is not None
        if wanted(spec, mode=about.attention, lens=lens, complete=False, evidence=about.evidence):
            shape = tuple(sizes[axis] for axis in spec.axes)
            dtype = about.attention_dtype if spec.presence == "qk" else residual
            order, chunks = _chunks(spec, shape, about, dtype, capacity, key_rows_hold, head_groups)
            yield PlannedArray(spec=spec, shape=shape, layout=chunks, model_dtype=dtype, order=order)


def axis_sizes(about: CaptureMetadata, length: int) -> dict[str, int]:
    """Length of every axis for a timeline of `length` tokens."""
    n_layer = about.model.n_layer
    kv_heads, features = vector_shape(about.model.layers)
    return {str(axis): length for axis in TIMELINE} | {
        "layer": n_layer,
        "head": about.model.n_head,
        "kv_head": kv_heads,
        "head_feature": features,
        "depth": n_layer + 1,
        "generated": length - about.n_prompt + 1,
        "rank": about.lens.top_k if about.lens else 0,
        "entry": about.model.vocabulary_size,
        "edge": length + 1,
        "byte": max(TOKEN_BYTES * length, LEAST_BYTES),
        "tracked": len(about.tracked),
        "feature": about.residual.n_feature if about.residual else 0,
    }


def _chunks(
    spec: ArraySpec,
    shape: tuple[int, ...],
    about: CaptureMetadata,
    dtype: str | None,
    capacity: int,
    hold: int,
    head_groups: int,
) -> tuple[AttentionOrder, ChunkLayout]:
    n_layer, n_head = about.model.n_layer, about.model.n_head
    if spec.name == "attention_weight":
        attention = layout.attention_layout(
            n_layer=n_layer,
            n_head=n_head,
            n_prompt=about.n_prompt,
            capacity=capacity,
            key_rows_hold=hold,
            head_groups=head_groups,
        )
        return attention.order, attention.weight
    if spec.name in ("attention_max", "attention_mean"):
        return "rows", layout.reduction_layout(n_layer=n_layer, generated=shape[0], capacity=capacity)
    itemsize = np.dtype(MODEL_DTYPES[dtype or "float32"]).itemsize
    if spec.presence == "qk" and len(shape) > 1:
        tokens = layout.KEY_TOKENS if "kv_head" in spec.axes else layout.QUERY_TOKENS
        return "rows", layout.vector_layout(
            n_layer=n_layer, heads=shape[2], features=shape[3], itemsize=itemsize, capacity=capacity, tokens=tokens
        )
    if spec.name == "value_norm":
        return "rows", layout.norm_layout(n_layer=n_layer, n_head=n_head, capacity=capacity)
    if spec.name == "residual":
        return layout.residual_layout(
            depths=shape[0], features=shape[2], itemsize=itemsize, n_prompt=about.n_prompt, capacity=capacity, hold=hold
        )
    if len(shape) > 1:
        return "rows", layout.lens_layout(
            depths=shape[0], capacity=capacity, ranks=shape[2] if len(shape) == 3 else None
        )
    return "rows", layout.list_layout(shape[0], layout.BYTES_CHUNK if spec.dtype == "uint8" else layout.LIST_CHUNK)
