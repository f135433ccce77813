"""The residual stream itself, bit for bit, on its way to the store."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlens.capture.carry import carry
from attnlens.schemas.metadata import ResidualInfo
from attnlens.store.writer import CaptureWriter

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class ResidualEvidence:
    """Receives residuals depth after depth; those of a single token travel together."""

    def __init__(self, writer: CaptureWriter, info: ResidualInfo) -> None:
        self._writer = writer
        self._dtype: torch.dtype = getattr(torch, info.dtype)
        self._first = 0
        self._step: dict[int, Tensor] = {}

    def begin_pass(self, first_token: int) -> None:
        """A pass begins at `first_token`."""
        self._first = first_token

    def receive(self, depth: int, residual: Tensor) -> None:
        """Residual (1, token, feature) at a depth."""
        if residual.shape[1] == 1:
            self._step[depth] = residual.clone()
        else:
            own = residual.to(self._dtype, copy=True)  # the model may write over its own
            self._writer.lanes(self._first, slice(depth, depth + 1), {"residual": carry(own)})

    def end_pass(self) -> None:
        """Sends what waits."""
        if self._step:
            device = self._step[0].device
            stacked = torch.cat([self._step[depth].to(device) for depth in sorted(self._step)])
            self._writer.lanes(self._first, slice(0, len(stacked)), {"residual": carry(stacked.to(self._dtype))})
            self._step.clear()


def residual_info(streams: list[Tensor]) -> ResidualInfo:
    """How residuals (…, feature) of all depths are stored: in their own dtype, in float32 where they differ in it."""
    dtypes = {stream.dtype for stream in streams}
    name = DTYPES.get(next(iter(dtypes)), "float32") if len(dtypes) == 1 else "float32"
    return ResidualInfo.model_validate({"n_feature": streams[0].shape[-1], "dtype": name})
