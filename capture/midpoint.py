"""The stream inside a layer, after its attention was added and before its MLP: where it can be seen, if there is one.

Blocks differ. Where a layer adds attention to the stream and then its MLP to the sum, some module is given that sum,
and watching it shows the stream itself. Where both read the same stream (parallel), or what is added to is normalised
(post-norm), there is no such stream. Accepted is only what adds up, number by number, on two texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attnlens.capture.agreement import relative_error
from attnlens.capture.configuration import config_numbers
from attnlens.capture.feeding import CallStyle
from attnlens.capture.forward import attempt
from attnlens.capture.override import tapped
from attnlens.capture.residual import LayerTracker
from attnlens.capture.tap import AttentionTap, Call
from attnlens.schemas.errors import ModelError

ROUNDING = 4
"""Units in the last place by which a sum may differ, where it has a factor."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A module of a layer that ran: when it began, and the streams (token, feature) that it was given and returned."""

    path: str
    module: nn.Module
    begun: int
    given: Tensor
    returned: Tensor


@dataclass
class Trace:
    """What one layer did in one pass: its input and output (token, feature), its modules, and when attention ran."""

    entered: Tensor | None = None
    left: Tensor | None = None
    attended: int = -1
    caller: nn.Module | None = None
    steps: list[Step] = field(default_factory=list)


def find_midpoints(model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle) -> dict[int, str]:
    """For each layer with attention, the path in it of a module that is given stream + attention output.

    Raises:
        ModelError: a layer has none; the message says why.
    """
    factors = [value for name, value in config_numbers(model).items() if "multiplier" in name or "scale" in name]
    first, second = (_trace(model, path, layers, tokens, style) for tokens in (ids, ids.flip(1)))
    found = {}
    for layer, trace in sorted(first.items()):
        if trace.attended < 0:
            continue
        both = [point for point in _points(trace, factors) if point in _points(second[layer], factors)]
        if not both:
            raise ModelError(f"{path}.{layer}: {_why(trace, factors)}")
        found[layer] = both[0]
    return found


def _points(trace: Trace, factors: list[float]) -> list[str]:
    """Paths of modules whose input is the sum, and to whose input the layer's output adds what ran later."""
    points = []
    for step in _sums(trace, factors):
        later = [other.returned for other in trace.steps if other.begun >= step.begun]
        if trace.left is not None and any(_adds_up(step.given, part, trace.left, factors) for part in later):
            points.append(step.path)
    return points


def _sums(trace: Trace, factors: list[float]) -> list[Step]:
    """Modules that are given layer input + attention output, in the order in which they ran."""
    entered = trace.entered
    if entered is None:
        return []
    written = _attention_outputs(trace)
    after = sorted((step for step in trace.steps if step.begun > trace.attended), key=lambda step: step.begun)
    return [step for step in after if any(_adds_up(entered, part, step.given, factors) for part in written)]


def _attention_outputs(trace: Trace) -> list[Tensor]:
    """What the modules around the attention call return, and what single modules behind them make of it (norms)."""
    around = [step.returned for step in trace.steps if any(part is trace.caller for part in step.module.modules())]
    for step in sorted(trace.steps, key=lambda step: step.begun):
        if step.begun > trace.attended and any(torch.equal(step.given, part) for part in around):
            around.append(step.returned)
    return around


def _adds_up(stream: Tensor, part: Tensor, total: Tensor, factors: list[float]) -> bool:
    """Whether total = stream + factor · part, to the last digit, or to rounding where the factor is not 1."""
    if (stream + part).dtype != total.dtype or torch.equal(stream, total) or not bool(part.any()):
        return False
    if torch.equal(stream + part, total):
        return True
    limit = ROUNDING * torch.finfo(total.dtype).eps
    return any(relative_error(stream + part * factor, total) <= limit for factor in factors if factor)


def _why(trace: Trace, factors: list[float]) -> str:
    if _sums(trace, factors):
        return (
            "it normalises the sum of stream and attention output before it adds its MLP (a post-norm block), so no "
            "stream has attention and not yet MLP in it"
        )
    entered, left = trace.entered, trace.left
    if entered is not None and left is not None:
        for part in _attention_outputs(trace):
            for other in trace.steps:
                if relative_error(entered + part + other.returned, left) <= 1e-3:
                    return "attention and MLP run in parallel on the same stream, so there is no stream between them"
    return "no module is given the sum of stream and attention output, so the stream inside it is unknown"


def _trace(model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle) -> dict[int, Trace]:
    traces = {index: Trace() for index in range(len(layers))}
    clock = iter(range(1 << 62))

    def attended(call: Call) -> None:
        traces[call.layer].attended, traces[call.layer].caller = next(clock), call.module

    def keep(depth: int, stream: Tensor) -> None:
        if depth < len(layers):
            traces[depth].entered = stream[0]
        if depth > 0:
            traces[depth - 1].left = stream[0]

    tracker = LayerTracker(path, layers, keep)
    tap = AttentionTap(tracker, lambda block: None, observe=attended)
    with tracker, _stepping(layers, traces, clock, ids.shape[1]), tapped(model, tap):
        tracker.begin(ids.shape[1])
        attempt(model, ids, style, last=1)
        tracker.end()
    return traces


@contextmanager
def _stepping(layers: nn.ModuleList, traces: Mapping[int, Trace], clock: Iterator[int], n_token: int) -> Iterator[None]:
    """Notes every module inside the layers that takes and returns a stream."""
    begun: dict[int, int] = {}
    handles: list[RemovableHandle] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begun[id(module)] = next(clock)

    def after(layer: int, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            returned = output[0] if isinstance(output, tuple | list) and output else output
            entered = traces[layer].entered
            if not tensors or not isinstance(returned, Tensor) or entered is None:
                return
            given = tensors[0]
            if given.numel() == returned.numel() == entered.numel():
                step = Step(
                    path=path,
                    module=module,
                    begun=begun[id(module)],
                    given=given.reshape(entered.shape),
                    returned=returned.reshape(entered.shape),
                )
                traces[layer].steps.append(step)

        return hook

    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after(index, path), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class MidpointTracker(AbstractContextManager["MidpointTracker"]):
    """Hooks on the modules that `find_midpoints` found: hands on the stream (1, token, feature) inside each layer."""

    def __init__(
        self,
        tracker: LayerTracker,
        layers: nn.ModuleList,
        points: Mapping[int, str],
        receive: Callable[[int, Tensor], None],
    ) -> None:
        self._tracker = tracker
        self._modules = {layer: layers[layer].get_submodule(path) for layer, path in points.items()}
        self._receive = receive
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> MidpointTracker:
        for layer, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._before(layer), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            self._receive(layer, self._tracker.new_rows(stream.reshape(1, self._tracker.n_row, -1), layer))

        return hook
