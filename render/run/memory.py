"""Keeps a process that draws small: freed blocks go back to the system."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # <malloc.h> of glibc
_THRESHOLD, _ARENAS = 1 << 20, 2


def return_freed_memory() -> None:
    """Let glibc give large freed blocks back at once, and keep few heaps for zarr's many threads.

    Rows of attention are large and short-lived, and by default each of some ten threads would keep the space of its
    own. Holds for the rest of the process; does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
        mallopt(_M_ARENA_MAX, _ARENAS)
