"""Where the layers of a model are, which one is running, and the residual stream between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attnlens.capture.feeding import Pass
from attnlens.schemas.errors import ModelError

Residual = Callable[[int, Tensor], None]
"""Takes (depth, residual (1, token, feature))."""


def find_layers(model: nn.Module, attention_modules: Iterable[nn.Module]) -> tuple[str, nn.ModuleList]:
    """The outermost list of modules that owns every module whose attention ran, and its path.

    By ownership, not by `layer_idx`: that attribute is absent, constant or repeated in several families.

    Raises:
        ModelError: there is no such list.
    """
    calling = {id(module) for module in attention_modules}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and calling <= {id(part) for part in module.modules()}:
            return path, module
    raise ModelError(
        f"{type(model).__name__}: its attention modules do not share one list of layers, so layers cannot be numbered"
    )


class LayerTracker(AbstractContextManager["LayerTracker"]):
    """Hooks on the layers of a model: says which runs, checks that each runs once a pass, hands residuals on.

    `seen`: tokens of the timeline after the current pass; `n_new`: how many of these are new; `n_row`: how many the
    pass feeds, more than that where earlier ones are fed again; `origin`: the first token whose key can be there.
    """

    def __init__(
        self,
        path: str,
        layers: nn.ModuleList,
        residual: Residual | None = None,
        *,
        begun: Callable[[int], None] | None = None,
    ) -> None:
        self._path = path
        self._layers = layers
        self._residual = residual
        self._begun = begun
        self._handles: list[RemovableHandle] = []
        self._runs = [0] * len(layers)
        self._skipped: set[int] | None = None
        self._depth = 0
        self.running: int | None = None
        self.seen = 0
        self.n_new = 0
        self.n_row = 0
        self.origin = 0

    def name(self, layer: int) -> str:
        """Path of a layer, for messages."""
        return f"{self._path}.{layer}"

    def __enter__(self) -> LayerTracker:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._before(index), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._after(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.running = None

    @property
    def fresh(self) -> bool:
        """Whether the current pass uses no keys of earlier ones."""
        return self.origin == self.seen - self.n_row

    def begin(self, n_new: int, step: Pass | None = None) -> None:
        """A pass over the next `n_new` tokens begins; `step` says what else it feeds."""
        self._runs = [0] * len(self._layers)
        self._depth = 0
        self.n_new = n_new
        self.seen += n_new
        self.n_row = n_new if step is None else step.n_row
        if step is not None and step.fresh:
            self.origin = self.seen - self.n_row

    def end(self) -> None:
        """The pass is over.

        Raises:
            ModelError: a layer ran twice, or not at all though it did in the first pass.
        """
        skipped = {index for index, runs in enumerate(self._runs) if runs == 0}
        if self._skipped is None and len(self._layers) - 1 not in skipped:
            self._skipped = skipped  # layers that a text without pictures never needs
        odd = [index for index, runs in enumerate(self._runs) if runs != (index not in (self._skipped or ()))]
        if odd:
            raise ModelError(
                f"{self.name(odd[0])} ran {self._runs[odd[0]]} times in one pass, expected once; "
                "a model that loops over its layers cannot be captured"
            )

    def new_rows(self, value: Any, layer: int) -> Tensor:
        """The stream (1, token, feature) of the new tokens, in what a layer takes or returns."""
        stream = stream_of(value, self.name(layer), self.n_row)
        return stream if self.n_row == self.n_new else stream[:, self.n_row - self.n_new :]

    def _before(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.running = index
            self._runs[index] += 1
            if self._begun is not None:
                self._begun(index)
            if self._residual is not None and self._depth <= index:
                given = args[0] if args else kwargs.get("hidden_states")
                stream = self.new_rows(given, index)
                while self._depth <= index:  # more than depth 0 only where layers before this one were skipped
                    self._residual(self._depth, stream)
                    self._depth += 1

        return hook

    def _after(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.running = None
            if self._residual is not None:
                self._residual(index + 1, self.new_rows(output, index))
                self._depth = index + 2

        return hook


def stream_of(output: Any, name: str, n_token: int) -> Tensor:
    """The residual stream (1, token, feature) in what a layer takes or returns: a tensor, or the first of several.

    Raises:
        ModelError: it has another shape (several streams, packed tokens).
    """
    stream = output
    if isinstance(output, tuple | list):
        stream = output[0]
    elif not isinstance(output, Tensor) and hasattr(output, "to_tuple"):
        stream = output.to_tuple()[0]
    if isinstance(stream, Tensor) and stream.dim() == 2 and stream.shape[0] == n_token:
        stream = stream[None]
    if not isinstance(stream, Tensor) or stream.dim() != 3 or stream.shape[:2] != (1, n_token):
        found = tuple(stream.shape) if isinstance(stream, Tensor) else type(stream).__name__
        raise ModelError(
            f"{name}: its residual stream is {found}, expected (1, {n_token}, feature); "
            "a model with several streams cannot be read by a lens"
        )
    return stream
