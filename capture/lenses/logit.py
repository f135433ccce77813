"""The logit lens: the model's own tail (final norm, head, scale, soft-cap) applied to the residual of any depth.

nostalgebraist, "interpreting GPT: the logit lens", 2020. Which modules make up the tail is found in `tail`.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.lenses.blocked import BLOCK_ROWS, can_walk, has_hooks, read_through
from attnlens.capture.lenses.readout import Readout, joined, read_logits, rows_at_a_time
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import LensInfo
from attnlens.store.layout import even


@dataclass(frozen=True, kw_only=True)
class LogitLens:
    """logits = cap(scale · modules(residual)), cap(z) = softcap · tanh(z / softcap) where there is one."""

    paths: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    vocabulary_size: int
    scale: float = 1.0
    softcap: float | None = None
    _hashed: list[Future[str]] = field(default_factory=list, repr=False, compare=False)

    @property
    def can_walk(self) -> bool:
        """Whether the head can be walked through, and what is before it has no hooks, which may mind the thread."""
        return can_walk(self.modules[-1]) and not any(has_hooks(module) for module in self.modules)

    def hash_soon(self) -> None:
        """Begins the hash of the weights, which takes a while, in a thread beside what comes before `info`."""
        thread = ThreadPoolExecutor(1, "attnlens-hash")
        self._hashed[:] = [thread.submit(_hash, self.modules)]
        thread.shutdown(wait=False)

    def read(self, residual: Tensor, following: Tensor, top_k: int, tracked: Tensor | None = None) -> Readout:
        """Readings of residuals (row, feature); `following` int64 (row): what came next, -1 for unknown.

        `tracked` int64 (tracked): ids whose rank and probability are kept in every row.

        Rows are taken some at a time, so that their logits stay small.
        """
        head = self.modules[-1]
        walks = can_walk(head)
        height = even(max(1, len(residual)), BLOCK_ROWS if walks else rows_at_a_time(self.vocabulary_size))
        parts = []
        for first in range(0, len(residual), height):
            rows, after = residual[first : first + height], following[first : first + height]
            if walks and isinstance(head, nn.Linear):
                stream = self._through(rows, self.modules[:-1])
                after = after.to(stream.device)
                parts.append(read_through(stream, head, after, top_k, tracked, scale=self.scale, softcap=self.softcap))
            else:
                logits = self.logits(rows)
                ids = None if tracked is None else tracked.to(logits.device)
                parts.append(read_logits(logits, after.to(logits.device), top_k, ids))
        return joined(parts)

    def _through(self, residual: Tensor, modules: tuple[nn.Module, ...]) -> Tensor:
        stream = residual[None]
        # Modules, not weights: hooks of accelerate bring offloaded weights in.
        for module in modules:
            stream = _first(module(stream))
        return stream[0]

    def logits(self, residual: Tensor) -> Tensor:
        """Next-token logits (row, vocabulary) of residuals (row, feature), in the model's dtype."""
        stream = self._through(residual, self.modules)
        if self.scale != 1.0:
            stream = stream * self.scale
        if self.softcap is not None:
            stream = torch.tanh(stream / self.softcap) * self.softcap
        return stream

    def info(self, top_k: int) -> LensInfo:
        """The record of this lens for the store."""
        return LensInfo(
            name="logit",
            modules=list(self.paths),
            scale=self.scale,
            softcap=self.softcap,
            top_k=top_k,
            hash=self._hashed[0].result() if self._hashed else _hash(self.modules),
        )


def _first(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(tensor, Tensor):
        raise ModelError(f"the model's tail returns {type(tensor).__name__}, expected a tensor")
    return tensor


@torch.no_grad()
def _hash(modules: tuple[nn.Module, ...]) -> str:
    """sha256 over the tail's weights, so that another lens can tell whether it was made for them."""
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in sorted(module.state_dict().items()):
            if not isinstance(parameter, Tensor) or parameter.is_meta:
                continue
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            gather: Any = getattr(parameter, "full_tensor", None)  # of a tensor-parallel model
            flat = (gather() if callable(gather) else parameter).detach().reshape(-1)
            for part in torch.split(flat, 8 << 20):
                digest.update(part.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
