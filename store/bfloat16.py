"""bfloat16, which Zarr does not have: kept as its bits in uint16, and said so in the array's attribute `bits`.

Sign and exponent are alike among neighbouring numbers, and are nine bits: as they are, one of them lies in the byte of
the fraction, which is noise. "whole-exponent" is an order of the bits in which it does not have to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.store.quantize import ENCODING

BITS = "bits"
"""Key in the attributes of an array, beside unit and meaning: the dtype whose bits its integers are."""
BFLOAT16 = "bfloat16"
WHOLE_EXPONENT = "whole-exponent"
"""The array's `encoding`. From the highest bit: sign, exponent bits 6 … 0, fraction, and exponent bit 7 xor bit 6.
These two differ in every number of 2⁻⁶³ … 2⁶⁵, so that the last bit is always the same. Arrays without encoding have
the bits in their own order: sign, exponent, fraction."""
NAN = 0x7F80
"""The fill value, in that order: 0x7FC0 in their own, which is NaN, quiet, as torch writes it."""


def has_bits(dtype: str, attributes: Mapping[str, Any]) -> bool:
    """Whether an array is bfloat16, by its dtype and what is said under our key of its attributes."""
    return dtype == "uint16" and attributes.get(BITS) == BFLOAT16


def has_whole_exponent(dtype: str, attributes: Mapping[str, Any]) -> bool:
    """Whether it is, in the order "whole-exponent"."""
    return has_bits(dtype, attributes) and attributes.get(ENCODING) == WHOLE_EXPONENT


def to_whole_exponent(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Bits in that order from their own."""
    return np.asarray(bits & 0x8000 | (bits & 0x3FFF) << 1 | (bits >> 14 ^ bits >> 13) & 1, np.uint16)


def from_whole_exponent(stored: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Bits in their own order from that one. In place, step by step: a row needs all keys there are, at once."""
    bits = np.asarray(stored >> 1, np.uint16)
    bits &= 0x3FFF
    bits |= stored & 0x8000
    highest = stored >> 14
    highest ^= stored
    highest &= 1
    highest <<= 14
    bits |= highest
    return bits


def decode(bits: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers that bits of bfloat16 stand for, exactly: bfloat16 is the upper half of float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of numbers that are bfloat16 already, exactly: what `decode` was given."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)
