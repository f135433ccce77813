"""A lens put to the residual streams of some lanes (depths, or layers), and the names that its readings have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlens.capture.carry import carry
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.lenses.readout import Readout
from attnlens.capture.lenses.tuned import Translators
from attnlens.schemas.arrays import MID, READINGS, TRACKED_READINGS, reading
from attnlens.store.late import Numbers, arrived

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class LaneReader:
    """What reads the streams of `lanes`.

    names: array of the table → its name for this lens; what is not named is not kept. translators: put before the
    tail, for a tuned lens. tracked: int64 (tracked), ids that are followed.
    """

    lens: LogitLens
    lanes: Sequence[int]
    names: Mapping[str, str]
    top_k: int
    translators: Translators | None = None
    tracked: Tensor | None = None

    @property
    def can_walk(self) -> bool:
        """Whether it reads by threads of its own, and runs nothing but plain modules."""
        return self.lens.can_walk

    @property
    def token_array(self) -> str:
        """Name of the array that holds ids of the vocabulary."""
        return self.names["lens_token"]

    def one(self, lane: int, rows: Tensor, following: Tensor) -> Arrays:
        """Readings (row, …) of residuals (row, feature) of one lane, followed by the tokens `following` (row)."""
        stream = rows if self.translators is None else self.translators.at(lane, rows)
        return _here(self._named(self.lens.read(stream, following, self.top_k, self.tracked)))

    def several(self, lanes: Sequence[int], rows: Tensor, following: Tensor) -> dict[str, Numbers]:
        """Readings (lane · token, …) of residuals (lane, token, feature) of some lanes; `following` (token).

        From a GPU they come late.
        """
        if self.translators is not None:
            rows = torch.stack([self.translators.at(lane, stream) for lane, stream in zip(lanes, rows, strict=True)])
        return self._named(self.lens.read(rows.flatten(0, 1), following.repeat(len(lanes)), self.top_k, self.tracked))

    def every(self, rows: Tensor, following: Tensor) -> Arrays:
        """Readings (lane, token, …) of residuals (token, lane, feature), in one product; `following` (token)."""
        n_token, n_lane = rows.shape[:2]
        if self.translators is not None:
            rows = torch.stack([self.translators.at(lane, rows[:, place]) for place, lane in enumerate(self.lanes)], 1)
        read = self.lens.read(rows.flatten(0, 1), following.repeat_interleave(n_lane), self.top_k, self.tracked)
        arrays = _here(self._named(read))
        return {name: array.reshape(n_token, n_lane, *array.shape[1:]).swapaxes(0, 1) for name, array in arrays.items()}

    def _named(self, read: Readout) -> dict[str, Numbers]:
        found = {
            "lens_token": read.token,
            "lens_probability": read.probability,
            "lens_entropy": read.entropy,
            "next_rank": read.next_rank,
            "next_probability": read.next_probability,
            "tracked_rank": read.tracked_rank,
            "tracked_probability": read.tracked_probability,
        }
        return {name: carry(found[array]) for array, name in self.names.items()}


def _here(arrays: Mapping[str, Numbers]) -> Arrays:
    return {name: arrived(numbers) for name, numbers in arrays.items()}


def depth_names(lens: str | None, *, tracked: bool) -> dict[str, str]:
    """Names of the arrays of a lens at every depth: None for the first one, else its name."""
    return {array: reading(array, lens) for array in (*READINGS, *(TRACKED_READINGS if tracked else ()))}


def mid_names() -> dict[str, str]:
    """Names of the arrays of readings inside the layers."""
    return dict(MID)
