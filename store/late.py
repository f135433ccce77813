"""Numbers that are still on their way to this machine's memory when they are handed over."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Late(Protocol):
    """An array that a device is still copying. Whoever needs its numbers waits for them, and nobody else."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once it is here."""

    def arrived(self) -> NDArray[Any]:
        """The array, as soon as it is here."""


Numbers = NDArray[Any] | Late


def arrived(numbers: Numbers) -> NDArray[Any]:
    """The array itself, waited for where it is late."""
    return numbers if isinstance(numbers, np.ndarray) else numbers.arrived()
