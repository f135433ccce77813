"""What an error while a text is captured means for the texts after it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from attnlens.capture.models.failure import one_line
from attnlens.schemas.errors import AttnlensError, StoreError

LOST = re.compile(
    r"CUDA error|HIP error|device-side assert|unspecified launch failure|XPU error|MPS backend error", re.I
)
"""What torch says when a kernel has failed for good: every later call fails, too."""
SHORT_OF_MEMORY = re.compile(r"(CUDA|HIP) error: out of memory", re.I)


def named(error: BaseException) -> str:
    """An error in one line: what we say ourselves as it is, anything else with its type."""
    return "".join(pieces(error))


def pieces(error: BaseException) -> tuple[str, ...]:
    """The same in pieces, of which those that name a setting are a `Setting`."""
    if isinstance(error, AttnlensError):
        return tuple(piece if isinstance(piece, str) else str(piece) for piece in error.args)
    return (f"{type(error).__name__}: {one_line(error)}",)


def store_is_lost(error: BaseException) -> bool:
    """Whether the store cannot be written."""
    return any(isinstance(link, StoreError) for link in _chain(error))


def device_is_lost(error: BaseException, device: torch.device) -> bool:
    """Whether the device no longer answers: by what the error says, and by asking the device."""
    for link in _chain(error):
        # A store's error carries the device's, of rows that were still to be copied.
        said = str(link) if isinstance(link, RuntimeError | StoreError) else ""
        if LOST.search(said) and not SHORT_OF_MEMORY.search(said):
            return True
    return not _answers(device)


def _answers(device: torch.device) -> bool:
    if device.type in ("cpu", "meta"):
        return True
    try:
        return float(torch.ones(1, device=device).add(1).sum()) == 2
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
