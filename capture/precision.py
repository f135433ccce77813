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
_MATMULS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products of float32 in full for the duration; the settings are put back.

    Torch has an older and a newer way to set this, and refuses to be asked in the one once the other was used.
    """
    kept = [(matmul, matmul.fp32_precision) for matmul in _MATMULS]
    try:
        older: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    try:
        if older is None:
            for matmul in _MATMULS:
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
