"""The passes of the probe that are compared with each other, and what is no more than recorded.

What is compared must be the same arithmetic: a model that rounds its activations to 8 bits turns the last digit of a
float32 sum into a tenth of a logit. So logits are compared with attention in one piece in both, cutting into blocks is
held against one piece where it happens, call by call, and the distance to another kernel is recorded and no limit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.feeding import CallStyle
from attnlens.capture.forward import attempt, logits_of
from attnlens.capture.override import Attention, configuration_of, hooks_kept
from attnlens.capture.residual import LayerTracker
from attnlens.capture.tap import AttentionTap, Block, Call
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import SelfCheck

BLOCK_ROWS = 5
"""Rows of a block, so that a mistake in cutting blocks shows in the probe's few tokens."""


class BothWays:
    """A tap that runs every attention call in one piece and again in blocks of rows, of the very same inputs.

    The pass goes on with one piece, whose blocks go to `receive` and whose calls to `observe`.
    """

    def __init__(
        self,
        tracker: LayerTracker,
        n_token: int,
        receive: Callable[[Block], None],
        observe: Callable[[Call], None],
        *,
        late_sinks: bool,
    ) -> None:
        self._tracker = tracker
        self._cut: list[Block] = []
        self._whole: list[Block] = []
        self._trouble: ModelError | None = None
        self._worst = self._limit = 0.0

        def both(block: Block) -> None:
            self._whole.append(block)
            receive(block)

        self._in_one = AttentionTap(
            tracker, both, max_rows=n_token, observe=observe, native=True, late_sinks=late_sinks
        )
        self._in_blocks = AttentionTap(
            tracker, self._cut.append, max_rows=BLOCK_ROWS, native=True, late_sinks=late_sinks
        )

    def __call__(self, own: Attention, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As the tap of one piece."""
        if self._tracker.running is None:
            return own(module, *args, **kwargs)
        self._cut.clear()
        self._whole.clear()
        output, weights = self._in_one(own, module, *args, **kwargs)
        try:
            again, _ = self._in_blocks(own, module, *args, **kwargs)
            self._compare(again, output)
        except ModelError as trouble:  # other checks of the pass come first
            self._trouble = self._trouble or trouble
        return output, weights

    def _compare(self, again: Tensor, output: Tensor) -> None:
        self._limit = tolerance(output.dtype)
        for error in (relative_error(again, output), _apart(self._cut, self._whole)):
            if not error <= self._limit:
                raise ModelError(
                    f"{self._tracker.name(self._tracker.running or 0)}: its attention in blocks of rows differs from "
                    f"that in one piece (off by {error:.2g}, limit {self._limit:.2g}); it cannot be captured truthfully"
                )
            self._worst = max(self._worst, error)

    def check(self) -> SelfCheck:
        """What was found in all calls.

        Raises:
            ModelError: output or weights of a call differ.
        """
        if self._trouble is not None:
            raise self._trouble
        return SelfCheck(name="probe: blocks of rows", passed=True, value=self._worst, limit=self._limit)


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
