"""Bytes of a store before it is written: exact for what the table of arrays fixes, a range for the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attnlens.schemas.arrays import LENS_ROWS
from attnlens.schemas.metadata import CaptureMetadata, LayerInfo
from attnlens.store.planned import PlannedArray, planned_arrays

TEXT_AXES = frozenset({"byte", "entry", "file"})
"""Axes whose length depends on what the text says."""
TEXT_BYTES = (6, 48)
"""Bytes on disk that tokens, their texts and the vocabulary of the lenses take a token and depth, least and most."""

ON_DISK: Mapping[str, tuple[float, float]] = {
    "attention_weight": (0.45, 0.95),
    "attention_max": (0.60, 1.00),
    "attention_mean": (0.60, 1.00),
    "attention_q": (0.60, 0.90),
    "attention_k": (0.60, 0.90),
    "residual": (0.60, 0.96),
}
"""Array → bytes on disk by its bytes in memory, least and most. Of attention only what a query can see is counted: the
rest are zeros, which take no room; of lenses only the tokens that they read: the rest are fill values."""
OTHER = (0.30, 1.00)


@dataclass(frozen=True, kw_only=True)
class ArraySize:
    """One array: its axes, dtype, bytes in memory (None: it depends on the text), and least and most on disk."""

    name: str
    axes: dict[str, int]
    dtype: str
    raw_bytes: int | None
    disk_bytes: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ModeSize:
    """A store that keeps attention in one mode. `raw_bytes` adds up the arrays that the text does not decide."""

    mode: str
    arrays: list[ArraySize]
    raw_bytes: int
    disk_bytes: tuple[int, int]


def mode_size(about: CaptureMetadata, *, capacity: int, key_rows_hold: int) -> ModeSize:
    """The arrays of a capture that fills its `capacity`, in the order of their size."""
    seen = visible_share(about.model.layers, capacity)
    n_read = capacity - about.lens_first
    planned = planned_arrays(about, capacity=capacity, key_rows_hold=key_rows_hold)
    arrays = [_size(array, seen, n_read, capacity, about.model.n_layer) for array in planned]
    arrays.sort(key=lambda array: -(array.raw_bytes or 0))
    return ModeSize(
        mode=about.attention or "none",
        arrays=arrays,
        raw_bytes=sum(array.raw_bytes or 0 for array in arrays),
        disk_bytes=(sum(array.disk_bytes[0] for array in arrays), sum(array.disk_bytes[1] for array in arrays)),
    )


def visible_share(layers: list[LayerInfo], capacity: int) -> float:
    """Which share of the cells (layer, head, query, key) a query can see, over all layers."""
    heads = max((layer.n_head for layer in layers), default=1)
    seen = 0.0
    for layer in layers:
        width = min(layer.window or capacity, capacity)
        rows = width * (width + 1) / 2 + (capacity - width) * width
        if layer.kind == "chunked" and layer.window:
            whole, rest = divmod(capacity, width)
            rows = whole * width * (width + 1) / 2 + rest * (rest + 1) / 2
        seen += 0 if layer.kind == "none" else layer.n_head / heads * rows
    return seen / (len(layers) * capacity * capacity)


def _size(array: PlannedArray, seen: float, n_read: int, capacity: int, n_layer: int) -> ArraySize:
    spec = array.spec
    name = spec.base or spec.name
    cells = math.prod(array.shape)
    if array.itemsize and not TEXT_AXES & set(spec.axes):
        raw = cells * array.itemsize
        low, high = ON_DISK.get(name, OTHER)
        filled = raw * (seen if name == "attention_weight" else n_read / capacity if name in LENS_ROWS else 1.0)
        disk = (int(filled * low), int(filled * high))
    elif array.itemsize:
        raw, disk = None, (0, 16 * capacity)
    else:
        raw, most = None, n_read * (n_layer + 1) if "entry" in spec.axes else capacity
        disk = (TEXT_BYTES[0] * min(most, capacity), TEXT_BYTES[1] * most)
    return ArraySize(
        name=spec.name,
        axes=dict(zip(map(str, spec.axes), array.shape, strict=True)),
        dtype=array.model_dtype or array.dtype if spec.dtype == "model" else array.dtype,
        raw_bytes=raw,
        disk_bytes=disk,
    )
