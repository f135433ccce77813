"""From a device to the host's memory, without holding up who computes.

On CUDA a copy that is to run beside kernels needs memory that stays in its place, a stream of its own, and an event
that says when it is done (CUDA C++ Programming Guide, "Overlap of Data Transfer and Kernel Execution").
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlens.store.late import Numbers


def carry(tensor: Tensor) -> Numbers:
    """A tensor as numpy has it, bfloat16 as its bits in uint16; late where it comes from a CUDA device.

    The caller changes the tensor no more. On the processor's memory nothing is copied.
    """
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    if tensor.device.type == "cuda":
        return Crossing(tensor)
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


class Crossing:
    """A copy under way. What is copied stays as it is until it has arrived."""

    def __init__(self, source: Tensor) -> None:
        aside = _stream(source.device)
        aside.wait_stream(torch.cuda.current_stream(source.device))
        self._host = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=True)
        # Blocking: the thread that waits leaves its core to the model's.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(aside):
            self._host.copy_(source, non_blocking=True)
            self._done.record(aside)
        self._source: Tensor | None = source
        self.nbytes = source.nbytes

    def arrived(self) -> NDArray[Any]:
        """The array, as soon as it is here."""
        self._done.synchronize()
        self._source = None  # its memory may be given out again, but not before
        array: NDArray[Any] = self._host.numpy()
        return array


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies from a device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
