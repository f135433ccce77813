"""The processes that hold one model together: tensor parallelism, each with its own heads.

transformers splits the model and its computation (`tp_plan`); here is what a capture needs beyond that. Every method is
to be called by all of the processes, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnlens.capture.configuration import text_config
from attnlens.capture.probe import Probed
from attnlens.schemas import errors
from attnlens.schemas.errors import AttnlensError, ModelError, Setting
from attnlens.store.heads import HeadShare

Result = TypeVar("Result")


class Parallel:
    """This process among those that hold the model."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.share = HeadShare(rank=rank, count=size)
        self._device = device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes all but the attention of others' heads."""
        return self.share.rank == 0

    def highest(self, values: Tensor) -> Tensor:
        """The largest of each value (any shape) over the processes, float32."""
        values = values.to(self._device, torch.float32, copy=True).contiguous()
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def total(self, values: Tensor) -> Tensor:
        """The sum of each value (any shape) over the processes, float32."""
        values = values.float().contiguous().clone()
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def gathered(self, values: Tensor, axis: int) -> Tensor:
        """The values of all processes, one after the other along an axis."""
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self.share.count)]
        dist.all_gather(parts, values)
        return torch.cat(parts, dim=axis)

    def token(self, token: int) -> int:
        """The token that the first process chose."""
        chosen = torch.tensor([token], device=self._device)
        dist.broadcast(chosen, src=0)
        return int(chosen)

    def told(self, value: Result) -> Result:
        """What the first process says."""
        said: list[Any] = [value]
        dist.broadcast_object_list(said, src=0, device=self._device)
        result: Result = said[0]
        return result

    def on_first(self, make: Callable[[], Result]) -> Result | None:
        """Runs `make` on the first process; None on the others.

        Raises:
            AttnlensError: `make` refused; all processes do then.
        """
        result, refusal = None, None
        if self.is_first:
            try:
                result = make()
            except AttnlensError as error:
                refusal = error
        said = self.told((type(refusal).__name__, str(refusal)) if refusal is not None else None)
        if refusal is not None:
            raise refusal
        if said is not None:
            raise getattr(errors, said[0], AttnlensError)(said[1])
        return result

    def whole(self, probed: Probed, model: nn.Module) -> Probed:
        """The probe's per-layer table with the heads of all processes.

        Raises:
            ModelError: the model's plan leaves the heads together.
        """
        count = self.share.count
        heads = getattr(text_config(model), "num_attention_heads", None)
        found = max(layer.n_head for layer in probed.table)
        if isinstance(heads, int) and found * count != heads:
            raise ModelError(
                f"{type(model).__name__} has {heads} heads, and {found} of them in each of {count} processes: "
                "transformers has no plan that shares them out; leave out ",
                Setting("tensor_parallel"),
            )
        table = tuple(
            layer.model_copy(update={"n_head": layer.n_head * count, "n_kv_head": layer.n_kv_head * count})
            for layer in probed.table
        )
        return replace(probed, table=table)


def parallel_of(model: nn.Module) -> Parallel | None:
    """The processes that hold `model` together; None if it is whole here.

    Raises:
        ModelError: it is split in a way that a capture cannot follow, such as through the middle of a head.
    """
    size = getattr(model, "tp_size", None)
    if not isinstance(size, int) or size < 2 or not dist.is_initialized():
        return None
    name = type(model).__name__
    if dist.get_world_size() != size:
        raise ModelError(
            f"{name} is split over {size} of {dist.get_world_size()} processes; start as many as hold the model"
        )
    config = text_config(model)
    for word in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, word, None)
        if isinstance(heads, int) and heads % size:
            raise ModelError(
                f"{name}: {word} is {heads}, which {size} processes cannot share evenly; start a number that divides it"
            )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return Parallel(dist.get_rank(), size, device)


def is_first(parallel: Parallel | None) -> bool:
    """Whether this process writes and reports."""
    return parallel is None or parallel.is_first


def on_first(parallel: Parallel | None, make: Callable[[], Result]) -> Result | None:
    """As `Parallel.on_first`; a process alone is the first."""
    return make() if parallel is None else parallel.on_first(make)
