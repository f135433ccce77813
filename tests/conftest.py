"""For all tests: tiny models run on one thread, files lie in memory where it is large, and long files come first."""

from __future__ import annotations

import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

# Faster than waiting for a second thread. The variable is for processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)

MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""
ENOUGH = 8 << 30
"""Bytes that must be free there; the tests take a quarter of it."""

LONG_FIRST = (
    "test_capture_kill.py",
    "test_batch_kill.py",
    "test_store_hostile.py",
    "test_capture_replace.py",
    "test_models_builtin.py",
    "test_relens_kill.py",
    "test_batch_parallel.py",
    "test_capture_probe.py",
    "test_render_scale.py",
    "test_store_kill.py",
    "test_store_export.py",
    "test_render_memory.py",
    "test_store_rows.py",
)
"""Files of few tests that take long: the last of them would leave one of two workers idle."""


def pytest_configure() -> None:
    """Commands flush what they write, some 50 times a test, and each flush waits for the disk. Here it need not: the
    tests of flushes look at the calls, and the crash images have file systems of their own."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what is in the background like that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
