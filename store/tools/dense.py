"""Dense rows in place of queries and keys, where a crop leaves out keys that rows which stay are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.storage import LocalStore

from attnlens.schemas.arrays import ARRAY, specs
from attnlens.store import quantize
from attnlens.store.create import create_array
from attnlens.store.layout import attention_layout
from attnlens.store.reader import Capture

Masks = Mapping[str, NDArray[np.bool_]]

QK = frozenset(spec.name for spec in specs() if spec.presence == "qk")
"""Arrays that a capture of dense rows does not have."""
VECTORS = frozenset({"attention_q", "attention_k"})
CHOICE = "rows made of queries and keys by lens crop"
NAME = "attention_weight"
WHOLE_ROWS = 1 << 62
"""Bytes of rows that may wait for their last layer: here all layers of a row are there at once."""


def lacks_keys(capture: Capture, kept: Masks) -> bool:
    """Whether rows that stay in a crop of a qk capture need keys that do not: of earlier tokens, or of other layers.

    Args:
        capture: The capture.
        kept: What stays, by axis (a mask over its entries); an axis that is not named stays whole.
    """
    if capture.metadata.attention != "qk" or not set(capture.names) >= VECTORS:
        return False
    if "token" in kept:
        rows = np.flatnonzero(kept["token"][: capture.committed])
        if len(rows) and rows[-1] + 1 > len(rows):
            return True
    layers = kept.get("layer")
    return layers is not None and any(
        layers[layer.index] and layer.key_source is not None and not layers[layer.key_source]
        for layer in capture.metadata.model.layers
    )


def write_rows(capture: Capture, store: LocalStore, kept: Masks, dtype: str | None = None) -> int:
    """Write `attention_weight` (layer, head, query, key) of a capture of queries and keys; returns its bytes in memory.

    Args:
        capture: The capture.
        store: Where; the group of the capture is there.
        kept: As `lacks_keys`. What does not stay is NaN.
        dtype: "uint8" for the 8-bit square root, None for float16.

    Raises:
        StoreError: a chunk is damaged.
    """
    spec = ARRAY[NAME]
    shape = tuple(capture.descriptions[axis].shape[0] for axis in spec.axes)
    layout = attention_layout(n_layer=shape[0], n_head=shape[1], n_prompt=capture.n_prompt, capacity=shape[2],
                              key_rows_hold=WHOLE_ROWS).weight  # fmt: skip
    about: dict[str, Any] = {}
    if dtype == "uint8":
        about = {quantize.ENCODING: quantize.SQRT, quantize.MAX_ERROR: quantize.SQRT_ERROR}
    array = create_array(
        store, capture.id, NAME, shape, layout, about=about, spec=replace(spec, dtype="uint8") if about else None,
        fill=255 if about else None, sparse=True,
    )  # fmt: skip
    there = [np.flatnonzero(_whole(kept, axis, size)) for axis, size in zip(spec.axes[:3], shape, strict=False)]
    there[0] = there[0][capture.attention_layers[there[0]]]
    there[2] = there[2][there[2] < capture.committed]
    gone = ~_whole(kept, "key", capture.n_token)
    for region in _regions(shape[:3], (layout.shard or layout.chunk)[:3]):
        inside = [at[(at >= part.start) & (at < part.stop)] for at, part in zip(there, region, strict=True)]
        if not all(map(len, inside)):
            continue
        layers, heads, queries = inside
        weights = capture.attention.rounded(queries, layers, heads)
        weights[..., gone] = np.nan
        cells = np.full((*(part.stop - part.start for part in region), shape[3]), np.nan, np.float16)
        starts = (at - part.start for at, part in zip(inside, region, strict=True))
        cells[(*np.ix_(*starts), slice(0, capture.n_token))] = weights
        array[region] = quantize.encode_sqrt(cells) if about else cells
    return array.dtype.itemsize * int(np.prod([*map(len, there), (~gone).sum()], dtype=np.int64))


def _whole(kept: Masks, axis: str, size: int) -> NDArray[np.bool_]:
    """The mask of an axis, as long as `size`."""
    mask = np.ones(size, np.bool_) if axis not in kept else kept[axis]
    return np.pad(mask[:size], (0, size - len(mask[:size])))


def _regions(shape: tuple[int, ...], step: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Blocks (layer, head, query) of rows that lie in the same files."""
    starts = (range(0, size, each) for size, each in zip(shape, step, strict=True))
    for corner in product(*starts):
        yield tuple(slice(at, min(at + each, size)) for at, each, size in zip(corner, step, shape, strict=True))
