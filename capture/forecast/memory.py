"""Peak memory of a capture: what lives at the same time, part by part, in bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnlens.capture.beside import WAITING_BYTES
from attnlens.capture.evidence import ROWS_TOGETHER
from attnlens.capture.forecast.sketch import Sketch
from attnlens.capture.lenses.blocked import BLOCK_COLUMNS, BLOCK_ROWS, BLOCKS_KEPT
from attnlens.capture.lenses.readout import LOGIT_BYTES
from attnlens.capture.tap import BLOCK_BYTES, OTHER_BLOCK_BYTES
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store.layout import MIB, SHARD_BYTES
from attnlens.store.planned import planned_arrays

SCORE_COPIES = 4
"""Copies of a block's scores that an eager function holds."""
READING_COPIES = 3
"""Copies of a block of logits while a lens reads it."""
BLOCKS_MORE = 2
"""Blocks of logits that a thread takes beside those it keeps."""
FREE = "free between blocks of rows"
"""Rows of weights are made by one thread and freed by another, and what is free between them goes back to the system
after the prompt only. Measured (docs/performance.md): as much as one more residual of the prompt for each layer.
"""
LOADING = "more while weights are loaded"
NF4_BLOCK = 64
"""Weights that share one scale in 4 bit."""


def weight_bytes(model: nn.Module, dtype: torch.dtype, quantize: str | None) -> int:
    """Bytes of all weights and buffers, tied ones once. Quantized are linear layers, the head excepted, as bitsandbytes
    does: 8 bit with a float32 scale a row, 4 bit with one for 64 weights.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    small: dict[int, int] = {}
    if quantize is not None:
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                rows, count = module.out_features, module.weight.numel()
                small[id(module.weight)] = (
                    count + 4 * rows if quantize == "8bit" else count // 2 + 4 * (count // NF4_BLOCK)
                )
    size = torch.empty((), dtype=dtype).element_size()
    unique = {id(weight): weight for weight in model.parameters()}
    total = sum(small.get(key, weight.numel() * size) for key, weight in unique.items())
    return total + sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())


def cache_growth(sketch: Sketch, n_fed: int, itemsize: int) -> int:
    """Bytes that keys and values take after `n_fed` tokens."""
    total = 0
    for layer in sketch.table:
        width = min(layer.window or n_fed, n_fed) if layer.kind == "sliding" else n_fed
        total += layer.n_kv_head * (layer.key_features + layer.value_features) * width * itemsize
    return total


def peak_memory(
    sketch: Sketch,
    about: CaptureMetadata,
    *,
    dtype: torch.dtype,
    stored: torch.dtype,
    quantize: str | None,
    n_first: int,
    capacity: int,
    buffer_bytes: int,
    key_rows_hold: int,
    on_gpu: bool,
) -> dict[str, dict[str, int]]:
    """Parts of the peak by where they lie: "host", and "device" if that is a GPU.

    `n_first`: tokens of the first pass. Its peak, that of the last token, and that of loading weights that are `stored`
    in another dtype, whose files are in memory beside what is made of them, are compared; the largest is told.
    """
    itemsize = torch.empty((), dtype=dtype).element_size()
    kept = max(cache_growth(sketch, capacity, itemsize), sketch.cache_bytes)
    passing = max(sketch.live_bytes, kept)  # of the first pass, whose cache is in it; or of the last token
    heads = max(layer.n_head for layer in sketch.table)
    room = OTHER_BLOCK_BYTES if on_gpu else BLOCK_BYTES["cpu"]
    block = min(max(room, 4 * heads * n_first), 4 * heads * n_first * n_first)
    model = {
        "weights": weight_bytes(sketch.model, dtype, quantize),
        "keys and values": kept,
        "activations and logits": passing - kept,
        "attention blocks": SCORE_COPIES * block * (1 if itemsize == 4 else 2),
        "lens": _lens(sketch, about, n_first, capacity, beside=not on_gpu and itemsize == 4) if about.lens else 0,
    }
    writer = {"rows not yet on disk": buffer_bytes + _waiting(about, capacity, key_rows_hold)}
    process = {"Python and libraries": process_bytes()}
    if on_gpu:
        return {"device": model, "host": process | writer}
    free = len(sketch.table) * n_first * (sketch.stream_width or 0) * itemsize if about.attention == "dense" else 0
    host = process | model | writer | {FREE: free}
    if stored != dtype and quantize is None:
        running = sum(host.values()) - process["Python and libraries"] - model["weights"]
        host[LOADING] = max(0, weight_bytes(sketch.model, stored, None) - running)
    return {"host": host}


def _lens(sketch: Sketch, about: CaptureMetadata, n_first: int, capacity: int, *, beside: bool) -> int:
    """What lenses hold while they read. `beside`: the head is walked by threads beside the model, if it is a matrix.

    Then residuals wait for them, and each thread keeps some blocks of logits; the last ones come on top of what may
    wait: the lanes that are put together, and those that are read.
    """
    head = getattr(sketch.model, "get_output_embeddings", lambda: None)()
    if not (beside and isinstance(head, nn.Linear)):
        return READING_COPIES * min(LOGIT_BYTES, 4 * capacity * sketch.vocabulary_size)
    row = 4 * (sketch.stream_width or 0)
    readers = 1 + len(about.lenses) + ("mid_token" in about.evidence)
    together = row * max(ROWS_TOGETHER, n_first - about.lens_first)
    everything = row * (about.model.n_layer + 1) * (capacity - about.lens_first) * readers
    waiting = min(WAITING_BYTES + together, everything) + min(2 * readers * together, everything)
    width = min(BLOCK_COLUMNS, sketch.vocabulary_size)
    blocks = min(BLOCKS_KEPT, -(-sketch.vocabulary_size // width)) + BLOCKS_MORE
    return waiting + torch.get_num_threads() * blocks * 4 * BLOCK_ROWS * width


def _waiting(about: CaptureMetadata, capacity: int, hold: int) -> int:
    """What the writer holds beyond its queue: prompt rows until their last layer, and the shard that it makes."""
    waiting, largest = 0, 0
    for array in planned_arrays(about, capacity=capacity, key_rows_hold=hold):
        if array.layout.shard is None or not array.itemsize:
            continue
        cells = array.itemsize
        shard = array.itemsize
        for size, most in zip(array.shape, array.layout.shard, strict=True):
            cells *= size
            shard *= min(size, most)
        waiting += min(cells, hold)
        largest = max(largest, min(shard, SHARD_BYTES))
    return min(waiting, 2 * hold) + 2 * largest


def process_bytes() -> int:
    """Bytes that this process has in memory now, with torch and transformers imported and no model."""
    if sys.platform.startswith("linux"):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 500 * MIB
