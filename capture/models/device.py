"""Where the weights go."""

from __future__ import annotations

from typing import Any

from attnlens.schemas.errors import InputError


def check_device(device: str) -> None:
    """Return if this machine has the device that was asked for.

    Raises:
        InputError: it has not; the message says what there is.
    """
    import torch

    kind, _, index = device.partition(":")
    if kind in ("auto", "cpu"):
        return
    backend = getattr(torch, kind)
    available = torch.backends.mps.is_available() if kind == "mps" else backend.is_available()
    if not available:
        raise InputError(f"device {device!r} was asked for, but torch {torch.__version__} finds no {kind} device here")
    count = backend.device_count()
    if index and int(index) >= count:
        raise InputError(f"device {device!r} was asked for, but there {'is' if count == 1 else 'are'} only {count}")


def device_map(device: str, *, explicit: bool = False) -> Any:
    """The `device_map` for transformers: "auto" spreads over every GPU, then the CPU, as far as the memory reaches.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        explicit: say the CPU in words, as bitsandbytes needs it; None otherwise, which is transformers' plain CPU path.
    """
    import torch

    if device == "auto" and torch.cuda.is_available():
        return "auto"
    if device in ("auto", "cpu"):
        return {"": "cpu"} if explicit else None
    return {"": device if ":" in device else f"{device}:0"}
