"""Finds a model's tail: what turns the last residual into logits, seen by watching the model run.

A configuration may lie or say nothing. A chain of modules that gives the model's own logits, for a second input too,
does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.configuration import config_numbers
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.residual import LayerTracker
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import SelfCheck
from attnlens.store.entropy import EXACT_ENTROPY

CHECKED_ROWS = 4
"""Tokens whose entropy is computed in float64 as well, at the first and the last depth."""


@dataclass(frozen=True, kw_only=True)
class TracedCall:
    """A module that ran after the last layer, outside any other such module."""

    path: str
    module: nn.Module
    given: Tensor
    returned: Tensor


@contextmanager
def _traced(model: nn.Module, layers: nn.ModuleList) -> Iterator[list[TracedCall]]:
    """Records the outermost module calls between the last layer's end and the model's end."""
    calls: list[TracedCall] = []
    open_calls: list[tuple[nn.Module, Tensor | None]] = []
    past_layers = False
    inside = {id(part) for part in layers.modules()}
    around = {id(part) for part in model.modules() if any(child is layers for child in part.modules())}
    handles = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if past_layers:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            open_calls.append((module, given))

    def after(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not open_calls or open_calls[-1][0] is not module:
                return
            _, given = open_calls.pop()
            returned = output[0] if isinstance(output, tuple | list) and output else output
            if not open_calls and given is not None and isinstance(returned, Tensor):
                calls.append(TracedCall(path=path, module=module, given=given, returned=returned))

        return hook

    def last_layer(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal past_layers
        past_layers = True

    for path, module in model.named_modules():
        if id(module) not in inside and id(module) not in around:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after(path)))
    handles.append(layers[-1].register_forward_hook(last_layer))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_logit_lens(
    model: nn.Module,
    path: str,
    layers: nn.ModuleList,
    run: Callable[[Tensor], Tensor],
    first: Tensor,
    second: Tensor,
) -> tuple[LogitLens, SelfCheck]:
    """Finds the tail from a pass over `first` and accepts it only if it also reproduces the logits of `second`.

    `run(ids (1, token)) → logits (1, token, vocabulary)` runs the model in one pass without a cache.

    Raises:
        ModelError: no tail of a known form gives the model's own logits; the message says what was tried.
    """
    streams, logits, calls = _watch(model, path, layers, run, first)
    residual = streams[len(layers)]
    chain = _chain(residual, calls)
    if not chain:
        raise ModelError("no module takes the last layer's output, so the model's tail is unknown")
    plain = LogitLens(
        paths=tuple(call.path for call in chain),
        modules=tuple(call.module for call in chain),
        vocabulary_size=logits.shape[-1],
    )
    raw = plain.logits(residual)
    if raw.shape != logits.shape:
        raise ModelError(
            f"the tail {' → '.join(plain.paths)} gives {tuple(raw.shape)}, the model {tuple(logits.shape)}"
        )
    streams, target, _ = _watch(model, path, layers, run, second)
    residual = streams[len(layers)]
    errors = []
    for scale, softcap in _forms(model, raw.float(), logits.float()):
        lens = replace(plain, scale=scale, softcap=softcap)
        error = relative_error(lens.logits(residual), target)
        if error <= tolerance(logits.dtype):
            return lens, _check_entropy(lens, [streams[0][:CHECKED_ROWS], residual[:CHECKED_ROWS]])
        errors.append(error)
    raise ModelError(
        f"the tail {' → '.join(plain.paths)} does not give the model's own logits (closest form is off by "
        f"{min(errors):.1g} of their range)"
    )


def _watch(
    model: nn.Module, path: str, layers: nn.ModuleList, run: Callable[[Tensor], Tensor], ids: Tensor
) -> tuple[dict[int, Tensor], Tensor, list[TracedCall]]:
    """Residuals (token, feature) of each depth, logits (token, vocabulary), and the calls after the last layer."""
    streams: dict[int, Tensor] = {}
    tracker = LayerTracker(path, layers, lambda depth, stream: streams.__setitem__(depth, stream))
    with _traced(model, layers) as calls, tracker:
        tracker.begin(ids.shape[1])
        logits = run(ids)
        tracker.end()
    return {depth: stream[0] for depth, stream in streams.items()}, logits[0], calls


def _check_entropy(lens: LogitLens, residuals: Sequence[Tensor]) -> SelfCheck:
    """The entropies that the lens reads of residuals (token, feature), against float64 arithmetic on its logits.

    The embedding is among them: there logits are largest. Both may multiply in another order, which moves a logit by
    a few units in its last place.
    """
    errors, limit = [], 1e-4
    for residual in residuals:
        logits = lens.logits(residual).float().cpu().double()
        exact = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
        unknown = torch.full((len(residual),), -1, device=residual.device)
        found = lens.read(residual, unknown, 1).entropy.cpu()
        errors.append((found - exact).abs())
        limit = max(limit, float(logits.abs().max()) * 2.0**-20)
    worst = float(torch.cat(errors).max())
    if not worst <= limit:
        raise ModelError(f"the entropies that its tail gives are off by {worst:.2g} nat (limit {limit:.2g})")
    return SelfCheck(name=EXACT_ENTROPY, passed=True, value=worst, limit=limit)


def _chain(residual: Tensor, calls: list[TracedCall]) -> list[TracedCall]:
    """The calls that pass the residual on: each takes what the one before returned, up to a constant factor."""
    stream, chain = residual[None], []
    for call in calls:
        if call.given.shape == stream.shape and _proportional(call.given, stream):
            chain.append(call)
            stream = call.returned
    return chain


def _proportional(one: Tensor, other: Tensor) -> bool:
    other = other.to(one.device)
    if torch.equal(one, other):
        return True
    one, other = one.float(), other.float()
    norm = other.square().sum()
    if norm == 0:
        return False
    return bool(relative_error(other * ((one * other).sum() / norm), one) < 1e-3)


def _forms(model: nn.Module, raw: Tensor, logits: Tensor) -> Iterator[tuple[float, float | None]]:
    """Pairs (scale, soft-cap) worth trying, the plain one first."""
    numbers = config_numbers(model)
    yield 1.0, None
    yield _fit(raw, logits, numbers), None
    for name, cap in numbers.items():
        if "cap" in name and cap > 0 and float(logits.abs().max()) <= cap:
            yield 1.0, cap
            inside = (logits / cap).clamp(-0.999999, 0.999999)
            yield _fit(raw, torch.atanh(inside) * cap, numbers), cap


def _fit(raw: Tensor, target: Tensor, numbers: dict[str, float]) -> float:
    """Least-squares factor from raw to target; a number of the configuration or its inverse if that close."""
    factor = float((raw * target).sum() / raw.square().sum().clamp(min=1e-30))
    for value in numbers.values():
        for candidate in (value, 1 / value if value else 0.0):
            if candidate and abs(factor - candidate) <= 1e-3 * abs(candidate):
                return candidate
    return factor
