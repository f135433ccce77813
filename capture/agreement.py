"""When two computations of the same tensor agree."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value that was expected."""
    found, expected = found.float().to(expected.device), expected.float()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways to compute the same tensor may be apart in this dtype."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
