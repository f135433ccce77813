"""How many bytes of tensors live at a time while a model runs. Works on "meta", where they are only counted."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations make, from their making until the last tensor on them is gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._holders: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        self._live = 0
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it made."""
        given = {id(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
        before = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and id(tensor) not in given:
                self._hold(tensor, before)
        return made

    def _hold(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place not in self._sizes:
            if place in before:  # a view of a weight
                return
            self._sizes[place] = storage.nbytes()
            self._live += storage.nbytes()
            self.most = max(self.most, self._live)
        self._holders[place] += 1
        weakref.finalize(tensor, self._drop, place)

    def _drop(self, place: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            self._live -= self._sizes.pop(place)
            del self._holders[place]
