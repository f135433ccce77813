"""What is known of a query beside its attention: what choices of heads and scales may look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One query; keys are 0 … query.

    layers: numbers of the layers in hand. ids: token ids int32 (key). sinks: bool (key), the first token and special
    ones. norms: float32 (layer, head, key), the length of value vectors, where a scale asked for them.
    """

    query: int
    layers: tuple[int, ...]
    ids: npt.NDArray[np.int32]
    sinks: npt.NDArray[np.bool_]
    norms: npt.NDArray[np.float32] | float = math.nan
