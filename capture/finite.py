"""Numbers that are not finite, told by what they are: an overflow of the model's dtype, or damaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnlens.capture.feeding import CallStyle
from attnlens.capture.forward import attempt
from attnlens.capture.override import eager_configuration, hooks_kept
from attnlens.capture.residual import LayerTracker
from attnlens.schemas.errors import ModelError

REMEDIES = {torch.float16: "try bfloat16 or float32", torch.bfloat16: "try float32"}


def all_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite."""
    return bool(values.isfinite().all())


def not_finite(what: str, dtype: torch.dtype) -> ModelError:
    """The refusal of `what` (a layer's attention, say), which the model computed in `dtype`."""
    name = str(dtype).removeprefix("torch.")
    remedy = REMEDIES.get(dtype, "its numbers overflow, or its weights are damaged")
    return ModelError(f"{what} not finite in {name}; {remedy}")


def check_readings(
    entropy: NDArray[np.floating[Any]],
    places: Sequence[str],
    tokens: Sequence[int],
    dtype: torch.dtype,
    advice: Sequence[str] = (),
) -> None:
    """That logits of a lens are numbers, by their entropy (place, token): those that overflow have none.

    `places`: what was read, for people (`depth 3`); `dtype`: what the lens computed in; `advice`: what else may help.

    Raises:
        ModelError: some are not.
    """
    finite = np.isfinite(entropy)
    if bool(finite.all()):
        return
    place, token = np.argwhere(~finite)[0]
    trouble = not_finite(f"at token {tokens[token]} the logits of the lens at {places[place]} are", dtype)
    raise ModelError(*trouble.args, *advice)


def check_finite(
    model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle, logits: Tensor
) -> None:
    """That the logits of the untouched model are numbers.

    Raises:
        ModelError: they are not; the message names the first layer that writes something else.
    """
    if all_finite(logits):
        return
    raise not_finite(_first_trouble(model, path, layers, ids, style), logits.dtype)


def _first_trouble(model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle) -> str:
    broken: list[int] = []

    def note(depth: int, stream: Tensor) -> None:
        if not broken and not all_finite(stream):
            broken.append(depth)

    tracker = LayerTracker(path, layers, note)
    try:
        with tracker, eager_configuration(model), hooks_kept(model):
            tracker.begin(ids.shape[1])
            attempt(model, ids, style)
            tracker.end()
    except ModelError:  # of a model with another kind of stream; then the layer stays unknown
        broken.clear()
    if not broken:
        return "its logits are"
    if broken[0] == 0:
        return f"what goes into {tracker.name(0)} is"
    return f"{tracker.name(broken[0] - 1)}: what it gives is"
