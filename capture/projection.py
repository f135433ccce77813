"""Finds the output projection of each layer's attention, by watching the model run.

A name (`o_proj`, `c_proj`, `dense`) proves nothing. A module that takes exactly what attention returned, and whose
output is that of a matrix, does. What some models put between the two (gates, norms) is no projection of single values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.feeding import CallStyle
from attnlens.capture.forward import attempt
from attnlens.capture.override import tapped
from attnlens.capture.residual import LayerTracker
from attnlens.capture.tap import AttentionTap, Call
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import SelfCheck

BLOCK_BYTES = 64 << 20
"""Of a projection that is multiplied in one go."""


@dataclass(frozen=True, kw_only=True)
class Taker:
    """A module that was given what attention returned: `given` (token, head · feature), `returned` (token, …)."""

    path: str
    module: nn.Module
    given: Tensor
    returned: Tensor


@dataclass(frozen=True, kw_only=True)
class Projections:
    """For each layer with attention, the Gram matrices W W^T of its heads' parts W (feature, width) of the projection.

    grams: float32 (kv_head, head of the group, feature, feature), on the layer's device: ‖v W‖² = v W W^T v^T.
    check: how far the matrices were from what the modules returned.
    """

    grams: dict[int, Tensor]
    check: SelfCheck


def find_projections(
    model: nn.Module,
    path: str,
    layers: nn.ModuleList,
    ids: Tensor,
    style: CallStyle,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Projections:
    """The output projections of all layers with attention.

    `total` sums over the processes that have the other heads, where there are some.

    Raises:
        ModelError: a layer has no such module; the message says what was found in its place.
    """
    tracker = LayerTracker(path, layers)
    calls: dict[int, Call] = {}
    takers: dict[int, Taker] = {}
    tap = AttentionTap(tracker, lambda block: None, observe=lambda call: calls.update({call.layer: call}))
    with tracker, _watching(layers, calls, takers), tapped(model, tap):
        tracker.begin(ids.shape[1])
        attempt(model, ids, style, last=1)
        tracker.end()
    if not calls:
        raise ModelError("its attention is known by its own report alone, which does not tell its values")
    grams, worst, limit = {}, 0.0, 0.0
    for layer, call in sorted(calls.items()):
        if layer not in takers:
            raise ModelError(
                f"{tracker.name(layer)}: no module takes what its attention returns as it is, so its output projection "
                "is unknown"
            )
        grams[layer], off = _gram(f"{tracker.name(layer)}.{takers[layer].path}", takers[layer], call, total)
        worst, limit = max(worst, off), max(limit, _limit(takers[layer]))
    check = SelfCheck(name="probe: output projection", passed=True, value=worst, limit=limit)
    return Projections(grams=grams, check=check)


@contextmanager
def _watching(layers: nn.ModuleList, calls: dict[int, Call], takers: dict[int, Taker]) -> Iterator[None]:
    """Notes the first module of each layer that is given its attention's output, outermost first."""
    handles = []
    given: dict[int, tuple[nn.Module, Tensor]] = {}

    def before(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if layer not in calls or layer in given or len(tensors) != 1:
                return
            output = calls[layer].output
            flat = output.reshape(output.shape[1], -1)
            if tensors[0].numel() == flat.numel() and torch.equal(tensors[0].reshape(flat.shape), flat):
                given[layer] = (module, flat)

        return hook

    def after(layer: int, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if layer in given and given[layer][0] is module and layer not in takers and isinstance(output, Tensor):
                flat = given[layer][1]
                returned = output.reshape(len(flat), -1)
                takers[layer] = Taker(path=path, module=module, given=flat, returned=returned)

        return hook

    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(before(index), with_kwargs=True))
                handles.append(module.register_forward_hook(after(index, path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gram(name: str, taker: Taker, call: Call, total: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, float]:
    """Gram matrices of the heads' parts, and how far the whole matrix is from what the module itself returned."""
    n_head, n_kv_head, n_feature = call.query.shape[1], call.value.shape[1], call.value.shape[3]
    if n_head * n_feature != taker.given.shape[1]:
        raise ModelError(f"{name} takes {taker.given.shape[1]} features, not {n_head} heads × {n_feature}")
    precise = torch.float64 if taker.given.device.type in ("cpu", "cuda") else torch.float32
    matrix = _matrix_of(taker)
    grams = []
    found = torch.zeros_like(taker.returned, dtype=precise)
    at_once = max(1, BLOCK_BYTES // (8 * n_feature * taker.returned.shape[1]))
    try:
        for head in range(0, n_head, at_once):
            rows = slice(head * n_feature, min(n_head, head + at_once) * n_feature)
            part = matrix(rows).to(precise)
            found += taker.given[:, rows].to(precise) @ part
            by_head = part.reshape(-1, n_feature, part.shape[1])
            grams.append((by_head @ by_head.mT).float())
        nothing = taker.module(torch.zeros_like(taker.given[None, :1]))[0].to(precise)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        IndexError,
    ) as error:  # some modules take no other input than the model's
        raise ModelError(f"{name} cannot be run by itself ({type(error).__name__})") from error
    found = found if total is None else total(found)
    off = relative_error(taker.returned, found + nothing)
    if not off <= _limit(taker):
        raise ModelError(f"{name} ({type(taker.module).__name__}) is no plain matrix product (off by {off:.1g})")
    return torch.cat(grams).reshape(n_kv_head, n_head // n_kv_head, n_feature, n_feature), off


def _limit(taker: Taker) -> float:
    """How far the product may be off: a module of whole numbers rounds its input, too, to 8 bits."""
    weight = getattr(taker.module, "weight", None)
    whole = isinstance(weight, Tensor) and not weight.is_floating_point()
    return tolerance(torch.float16 if whole else taker.given.dtype)


def _matrix_of(taker: Taker) -> Callable[[slice], Tensor]:
    """Rows of the matrix (input feature, width): the weight where it is one, else what becomes of unit vectors.

    They go through quantised, offloaded and adapted modules as everything else does.
    """
    module = taker.module
    weight = getattr(module, "weight", None)
    here: Any = getattr(weight, "to_local", None)  # of a tensor-parallel model
    weight = here() if callable(here) else weight
    bare = not module._forward_hooks and not module._forward_pre_hooks and not hasattr(module, "_hf_hook")
    if bare and isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta:
        if type(module) is nn.Linear:
            return lambda rows: weight[:, rows].T
        if type(module) is Conv1D:
            return lambda rows: weight[rows]

    def units(rows: slice) -> Tensor:
        size = taker.given.shape[1]
        unit = torch.zeros(1, rows.stop - rows.start, size, dtype=taker.given.dtype, device=taker.given.device)
        unit[0].diagonal(rows.start).fill_(1)
        made: Tensor = module(unit) - module(torch.zeros_like(unit[:, :1]))
        return made[0]

    return units
