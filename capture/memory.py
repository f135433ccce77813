"""Keeps the process from holding on to memory that it no longer uses."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # <malloc.h> of glibc
_THRESHOLD = 1 << 20


def return_freed_memory() -> None:
    """Lets glibc give large freed blocks back to the system at once, for the rest of the process.

    By default it raises that limit up to 32 MiB as blocks are freed, and the logits of a long prompt, made and freed
    thousands of times between small blocks that stay, then leave a gigabyte of holes. Does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)


def return_small_blocks() -> None:
    """Gives back what lies free between blocks that are in use, some ten MiB where many threads take and free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
