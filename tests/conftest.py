"""For all tests: tiny models run on one thread, which is several times faster than waiting for a second."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)
