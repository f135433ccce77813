"""The passes of the probe that are compared with each other, and what is no more than recorded.

What is compared must be the same arithmetic: a model that rounds its activations to 8 bits turns the last digit of a
float32 sum into a tenth of a logit. So logits are compared with attention in one piece in both, cutting into blocks is
held against one piece where it happens, call by call, and the distance to another kernel is recorded and no limit.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.feeding import CallStyle
from attnlens.capture.forward import attempt, logits_of
from attnlens.capture.override import Attention, configuration_of, hooks_kept, tapped
from attnlens.capture.residual import LayerTracker
from attnlens.capture.tap import AttentionTap, Block
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import SelfCheck

BLOCK_ROWS = 5
"""Rows of a block, so that a mistake in cutting blocks shows in the probe's few tokens."""


def check_blocks(
    model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle, *, late_sinks: bool
) -> SelfCheck:
    """Output and weights of every attention call, in blocks of rows and in one piece, of the very same inputs.

    Raises:
        ModelError: they differ.
    """
    tracker = LayerTracker(path, layers)
    cut: list[Block] = []
    whole: list[Block] = []
    in_blocks = AttentionTap(tracker, cut.append, max_rows=BLOCK_ROWS, native=True, late_sinks=late_sinks)
    in_one = AttentionTap(tracker, whole.append, max_rows=ids.shape[1], native=True, late_sinks=late_sinks)
    worst = limit = 0.0

    def both(own: Attention, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        nonlocal worst, limit
        if tracker.running is None:
            return own(module, *args, **kwargs)
        cut.clear()
        whole.clear()
        output, weights = in_one(own, module, *args, **kwargs)
        again, _ = in_blocks(own, module, *args, **kwargs)
        limit = tolerance(output.dtype)
        for error in (relative_error(again, output), _apart(cut, whole)):
            if not error <= limit:
                raise ModelError(
                    f"{tracker.name(tracker.running)}: its attention in blocks of rows differs from that in one piece "
                    f"(off by {error:.2g}, limit {limit:.2g}); it cannot be captured truthfully"
                )
            worst = max(worst, error)
        return output, weights

    with tracker, tapped(model, both):
        tracker.begin(ids.shape[1])
        attempt(model, ids, style)
        tracker.end()
    return SelfCheck(name="probe: blocks of rows", passed=True, value=worst, limit=limit)


def _apart(cut: list[Block], whole: list[Block]) -> float:
    """How far weights in blocks are from those of one piece; columns that a block lacks are 0."""
    if not whole:
        return 0.0  # the same queries and keys once more, whose weights were taken
    weights = whole[0].weights
    found = torch.zeros_like(weights)
    for block in cut:
        row, column = block.first_query - whole[0].first_query, block.first_key - whole[0].first_key
        n_row, n_column = block.weights.shape[1:]
        found[:, row : row + n_row, column : column + n_column] = block.weights
    return float((found - weights).abs().max())


def measured(error: float) -> float | None:
    """A number that is recorded and not judged; a store's JSON has no NaN."""
    return error if isfinite(error) else None


def distance_to_sdpa(model: nn.Module, ids: Tensor, style: CallStyle, expected: Tensor) -> list[SelfCheck]:
    """How far the untouched model's logits are from `expected`, those of eager attention, with torch's own kernels.

    Nothing, where the model's class has no such kernels.
    """
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not parts or not all(part._supports_sdpa for part in parts):
        return []
    try:
        with configuration_of(model, "sdpa"), hooks_kept(model):
            logits = logits_of(model, attempt(model, ids, style))
    except ModelError:
        return []
    error = measured(relative_error(logits, expected))
    detail = "of the untouched model, sdpa against eager; recorded, not judged"
    return [SelfCheck(name="probe: distance to sdpa", passed=True, value=error, detail=detail)]
