"""Float32 products in float32: no TF32, no bfloat16, whatever the program around has set.

TF32 keeps ten bits of a fraction, and puts errors of 3e-3 into attention. The setting is one of the whole process and
not of a thread, so it holds for the model, too: what is captured is what the model does in its own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_EXACT = "highest"


def _newer_settings() -> tuple[Any, ...]:
    """What has torch's newer setting, of 2.9; before that the older one is all there is."""
    matmuls = (getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn))
    return tuple(matmul for matmul in matmuls if hasattr(matmul, "fp32_precision"))


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products of float32 in full for the duration; the settings are put back.

    Torch has an older and a newer way to set this, and refuses to be asked in the one once the other was used.
    """
    matmuls = _newer_settings()
    kept = [(matmul, matmul.fp32_precision) for matmul in matmuls]
    try:
        older: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    try:
        if older is None:
            for matmul in matmuls:
                matmul.fp32_precision = "ieee"
        elif older != _EXACT:
            torch.set_float32_matmul_precision(_EXACT)
        yield
    finally:
        if older not in (None, _EXACT):
            torch.set_float32_matmul_precision(older)
        for matmul, precision in kept:
            if matmul.fp32_precision != precision:
                matmul.fp32_precision = precision
