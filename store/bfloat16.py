"""bfloat16, which Zarr does not have: kept as its bits in uint16, and said so in the array's attribute `bits`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = "bits"
"""Key in the attributes of an array, beside unit and meaning: the dtype whose bits its integers are."""
BFLOAT16 = "bfloat16"
NAN = 0x7FC0
"""The fill value: NaN, quiet, as torch writes it."""


def decode(bits: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers that bits of bfloat16 stand for, exactly: bfloat16 is the upper half of float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of numbers that are bfloat16 already, exactly: what `decode` was given."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)
