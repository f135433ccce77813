"""Which keys a mask lets each query see: all before it, a window of them, or something that no rule says."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnlens.schemas.metadata import LayerInfo

BLOCK_CELLS = 1 << 20
"""Cells of a mask that are looked at at a time."""


class Sight:
    """Reads masks, each once a pass."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, tuple[object, ...], LayerInfo | None]] = []

    def of(self, mask: Tensor | None, info: LayerInfo, seen: int, n_row: int, n_key: int) -> LayerInfo | None:
        """`info` with the kind and window that the mask has, exactly and for all heads; None if it has neither.

        Args:
            mask: float (0 where a key is seen) or bool (true there), (1, head or 1, query, key), or None.
            info: the layer as far as it is known.
            seen: tokens of the timeline, the last `n_row` of which are the queries.
            n_row: queries.
            n_key: keys, the last ones of the timeline.
        """
        if mask is None:
            return info if n_row == 1 and first_seen(info, seen - 1) == seen - n_key else None
        wanted = (info.kind, info.window, n_row, n_key, seen)
        for known, question, answer in self._known:
            if known is mask and question == wanted:
                return answer and info.model_copy(update={"kind": answer.kind, "window": answer.window})
        found = next((one for one in _candidates(mask, info, n_key) if _is(mask, one, seen, n_row, n_key)), None)
        self._known.append((mask, wanted, found))
        return found

    def forget(self) -> None:
        """Drops the masks of the pass that ended, which may be large."""
        self._known.clear()


def first_seen(info: LayerInfo, query: int) -> int:
    """The first key that a query sees; later queries see none before it."""
    if info.kind == "sliding" and info.window is not None:
        return max(0, query - info.window + 1)
    if info.kind == "chunked" and info.window is not None:
        return query // info.window * info.window
    return 0


def _firsts(info: LayerInfo, query: Tensor) -> Tensor:
    """`first_seen` of many queries."""
    if info.kind == "sliding" and info.window is not None:
        return (query - info.window + 1).clamp(min=0)
    if info.kind == "chunked" and info.window is not None:
        return query // info.window * info.window
    return torch.zeros_like(query)


def _candidates(mask: Tensor, info: LayerInfo, n_key: int) -> Iterator[LayerInfo]:
    """What the mask may be: what the model declares, all keys, or as many as its last query sees."""
    yield info
    if info.kind != "full":
        yield info.model_copy(update={"kind": "full", "window": None})
    last = mask[0, 0, -1, :n_key]
    count = int((last if mask.dtype == torch.bool else last == 0).sum())
    if 0 < count < n_key:
        yield info.model_copy(update={"kind": "sliding", "window": count})


def _is(mask: Tensor, info: LayerInfo, seen: int, n_row: int, n_key: int) -> bool:
    """Whether the mask shows each query exactly the keys that `info` says, and adds nothing to their scores."""
    if mask.dim() != 4 or mask.shape[0] != 1 or mask.shape[2] != n_row or mask.shape[3] < n_key:
        return False
    key = torch.arange(seen - n_key, seen, device=mask.device)
    step = max(1, BLOCK_CELLS // (n_key * mask.shape[1]))
    for start in range(0, n_row, step):
        part = mask[0, :, start : start + step, :n_key]
        query = torch.arange(seen - n_row + start, seen - n_row + start + part.shape[1], device=mask.device)
        if start == 0 and first_seen(info, seen - n_row) < seen - n_key:
            return False  # a query should see keys that are not here
        seen_here = (key <= query[:, None]) & (key >= _firsts(info, query)[:, None])
        shown = part if mask.dtype == torch.bool else part == 0
        if not bool((shown == seen_here).all()):
            return False
        if mask.dtype != torch.bool and not bool((shown | (part <= torch.finfo(mask.dtype).min / 2)).all()):
            return False
    return True
