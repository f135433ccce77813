"""Attention of models that do not use transformers' attention functions: the weights that they report themselves.

An older model hands its weights from module to module until they come out as `output_attentions`. They are taken where
they first leave a module, and a blank travels on in their place, so that the weights of all layers never wait together.
Of these models nothing is known but what they report: the probe holds it to the same checks of rows, and tries out
whether it is what their values are mixed with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.configuration import text_config
from attnlens.capture.feeding import CallStyle
from attnlens.capture.forward import attempt
from attnlens.capture.override import eager_configuration, hooks_kept
from attnlens.capture.residual import LayerTracker, find_layers
from attnlens.capture.tap import Block
from attnlens.schemas.errors import ModelError, Setting
from attnlens.schemas.metadata import LayerInfo, LayerKind

Places = Mapping[nn.Module, int]
"""Module that first hands out the weights of its layer → their place in what it returns."""


def find_places(model: nn.Module, ids: Tensor, style: CallStyle) -> tuple[str, nn.ModuleList, Places, CallStyle]:
    """The layers of a model that reports attentions, where the weights come from, and how to ask for them.

    Raises:
        ModelError: it reports none, or they are not what one of its modules returns.
    """
    name = type(model).__name__
    returned: list[tuple[nn.Module, int, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple | list):
            returned.extend((module, place, item) for place, item in enumerate(output) if _is_weights(item, ids))

    style = replace(style, reports=True)
    with eager_configuration(model), hooks_kept(model):
        for module in model.modules():
            module.register_forward_hook(note)
        output = attempt(model, ids, style)
    reported = [weights for weights in getattr(output, "attentions", None) or () if isinstance(weights, Tensor)]
    if not reported:
        raise ModelError(
            f"{name}: its attention does not go through transformers' attention functions, and it reports no "
            "output_attentions, so it cannot be captured (attnlens never guesses attention)"
        )
    places: dict[nn.Module, int] = {}
    for weights in reported:
        found = next(((module, place) for module, place, item in returned if item is weights), None)
        if found is None or found[0] in places:
            raise ModelError(
                f"{name}: its attention does not go through transformers' attention functions, and the weights "
                f"{tuple(weights.shape)} that it reports are not what one module of each layer returns"
            )
        places[found[0]] = found[1]
    if reported[0].dtype != torch.float32:
        raise ModelError(
            f"{name}: its attention can only be taken as the model reports it, in {reported[0].dtype}, whose rows do "
            "not sum to 1; load it with ",
            Setting("dtype='float32'", "--dtype float32"),
        )
    path, layers = find_layers(model, places)
    return path, layers, places, style


class ReportTap(AbstractContextManager["ReportTap"]):
    """Hands the weights that modules return to `receive`, and lets a blank go on in their place."""

    def __init__(
        self, model: nn.Module, tracker: LayerTracker, places: Places, receive: Callable[[Block], None]
    ) -> None:
        self._model, self._tracker, self._places, self._receive = model, tracker, places, receive
        self._stack = ExitStack()

    def __enter__(self) -> ReportTap:
        self._stack.enter_context(eager_configuration(self._model))
        self._stack.enter_context(hooks_kept(self._model))
        for module, place in self._places.items():
            module.register_forward_hook(self._take(place), prepend=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def forget_mask(self) -> None:
        """There is none."""

    def _take(self, place: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            layer = self._tracker.running
            if layer is None:
                return None
            tracker = self._tracker
            weights, n_new, fed, seen = output[place], tracker.n_new, tracker.n_row, tracker.seen
            if not isinstance(weights, Tensor) or weights.dim() != 4 or weights.shape[0] != 1:
                raise ModelError(f"{tracker.name(layer)}: it reports no weights for {fed} of {seen} tokens")
            n_row, n_key = weights.shape[2:]
            if n_row != fed or n_key > seen - tracker.origin or (tracker.fresh and n_key != fed):
                raise ModelError(
                    f"{tracker.name(layer)}: attention with {n_row} queries and {n_key} keys for {fed} fed "
                    f"tokens of {seen}; its axes are not the tokens of the text, so its rows cannot be stored"
                )
            rows = weights[0, :, fed - n_new :]
            self._receive(Block(layer=layer, first_query=seen - n_new, first_key=seen - n_key, weights=rows))
            changed = [*output]
            changed[place] = weights[..., :0]
            return type(output)(changed)

        return hook


def reported_table(model: nn.Module, path: str, layers: nn.ModuleList, heads: Mapping[int, int]) -> list[LayerInfo]:
    """The per-layer table, of what the configuration declares; `heads` of each layer that reported weights.

    The sizes of keys and values were not seen: 0.
    """
    config = text_config(model)
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ()
    window = getattr(config, "window_size", None) or getattr(config, "sliding_window", None)
    table = []
    for index in range(len(layers)):
        declared = kinds[index] if index < len(kinds) else ""
        sliding = declared in ("local", "sliding_attention") and isinstance(window, int)
        kind: LayerKind = "none" if index not in heads else "sliding" if sliding else "full"
        table.append(
            LayerInfo(
                index=index,
                path=f"{path}.{index}",
                kind=kind,
                n_head=heads.get(index, 0),
                n_kv_head=0,
                key_features=0,
                value_features=0,
                window=window if kind == "sliding" else None,
            )
        )
    return table


def _is_weights(item: Any, ids: Tensor) -> bool:
    return isinstance(item, Tensor) and item.dim() == 4 and item.shape[0] == 1 and item.shape[2] == ids.shape[1]
