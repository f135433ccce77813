"""Weights in fewer bits: as an 8-bit square root, or to the level of colour that a picture shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ENCODING = "encoding"
"""Key in the attributes of an array, beside unit and meaning."""
MAX_ERROR = "max_error"
SQRT = "sqrt254"
"""uint8 code c stands for (c / 254)², 255 for NaN."""
NAN_CODE = 255
_STEPS = 254
SQRT_ERROR = 0.0041
"""(s + 1/508)² - s² for a root s ≤ 1 - 1/508 is less than 1/254; rounding to float16 adds at most 1/4096."""
LEVELS = 256
"""Colours of a picture on the scale 0 … 1. Levels keep a weight inside its 256th, so that its colour stays."""
LEVEL_ERROR = 1 / (2 * LEVELS)
_KEPT_BITS = 3


def encode_sqrt(values: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Codes of weights in 0 … 1 or NaN; others are taken as the nearest of these."""
    root = np.sqrt(np.clip(values.astype(np.float32), 0, 1))
    codes = np.where(np.isnan(root), NAN_CODE, np.rint(root * _STEPS))
    return codes.astype(np.uint8)


def decode_sqrt(codes: NDArray[np.uint8]) -> NDArray[np.float16]:
    """The weights that codes stand for."""
    return _TABLE[codes]


_TABLE = np.append((np.arange(_STEPS + 1) / _STEPS) ** 2, np.nan).astype(np.float16)


def to_levels(values: NDArray[np.float16]) -> NDArray[np.float16]:
    """Each weight as the middle of its 256th of 0 … 1; below 1/256 by its leading bits, never more than it was."""
    wide = values.astype(np.float32)
    level = np.minimum(np.floor(wide * LEVELS), LEVELS - 1)
    mask = np.uint16((0xFFFF << (10 - _KEPT_BITS)) & 0xFFFF)
    low = (values.view(np.uint16) & mask).view(np.float16)
    middle = ((level + 0.5) / LEVELS).astype(np.float16)
    result = np.where(wide < 1 / LEVELS, low, middle)
    return np.where(np.isnan(values), np.float16(np.nan), result).astype(np.float16)
