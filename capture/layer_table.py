"""The per-layer table of a store: what the attention of each layer is, as declared and as its masks show it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.configuration import text_config
from attnlens.capture.tap import Call
from attnlens.schemas.metadata import LayerInfo, LayerKind


def layer_table(model: nn.Module, path: str, layers: nn.ModuleList, calls: list[Call]) -> tuple[LayerInfo, ...]:
    """The per-layer table."""
    by_layer = {call.layer: call for call in calls}
    text = text_config(model)
    types = getattr(text, "layer_types", None) or []
    table = []
    for index in range(len(layers)):
        call = by_layer.get(index)
        if call is None:
            table.append(
                LayerInfo(
                    index=index,
                    path=f"{path}.{index}",
                    kind="none",
                    n_head=0,
                    n_kv_head=0,
                    key_features=0,
                    value_features=0,
                )
            )
            continue
        kind, window = _kind(types[index] if index < len(types) else "", call, text)
        table.append(
            LayerInfo(
                index=index,
                path=f"{path}.{index}",
                kind=kind,
                n_head=call.query.shape[1],
                n_kv_head=call.key.shape[1],
                key_features=call.key.shape[3],
                value_features=call.value.shape[3],
                window=window,
                scaling=call.scaling,
                softcap=call.softcap,
                sinks=call.sinks,
            )
        )
    return tuple(table)


def _kind(declared: str, call: Call, config: Any) -> tuple[LayerKind, int | None]:
    """Full, sliding or chunked attention, and its window in tokens, as the model declares it."""
    if declared == "full_attention":
        return "full", None
    if declared == "chunked_attention":
        return "chunked", getattr(config, "attention_chunk_size", None)
    window = call.window if call.window is not None else getattr(call.module, "sliding_window", None)
    if declared == "sliding_attention" and window is None:
        window = getattr(config, "sliding_window", None)
    return ("sliding", window) if isinstance(window, int) and window > 0 else ("full", None)


def seen_window(layer: LayerInfo, mask: Tensor, n_key: int) -> LayerInfo:
    """The layer with the window that its mask (1, head, query, key) really has.

    A mask that depends on the text (the best keys of an index, other keys for other heads) is no window: the layer is
    "full" then, which promises nothing.
    """
    if mask.dtype == torch.bool or mask.shape[-1] < n_key or layer.kind == "chunked":
        return layer
    n_row = mask.shape[-2]
    rows = torch.tensor(sorted({n_row // 2, 3 * n_row // 4, n_row - 1}), device=mask.device)
    visible = mask[0, :, rows, :n_key] > torch.finfo(mask.dtype).min / 2
    back = (rows + n_key - n_row)[:, None] - torch.arange(n_key, device=mask.device)  # how far before the query
    window = int(visible[0, -1].sum())
    if not torch.equal(visible, ((back >= 0) & (back < window)).expand_as(visible)):
        return layer.model_copy(update={"kind": "full", "window": None})
    if layer.window is not None and window == min(layer.window, n_key):
        return layer
    if window == n_key:
        return layer.model_copy(update={"kind": "full", "window": None})
    return layer.model_copy(update={"kind": "sliding", "window": window})
