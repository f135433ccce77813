"""Starting the processes that help to draw. Imports next to nothing, so that a command can begin with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerContext, SpawnContext

_PRELOADED = ["attnlens.render.run.jobs", "attnlens.render.views.open", "zarr"]
"""What every helper needs, imported once by the server they are copies of; not the script, see `without_script`."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context() -> ForkServerContext | SpawnContext:
    """How helpers begin: as copies of a process that has the imports and no threads, or as fresh interpreters."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_PRELOADED)
    return found


def prepare(workers: int | None) -> None:
    """Let the imports of helpers run beside this process's own, if `workers` (None: one a processor) asks for any."""
    if (cores() if workers is None else workers) < 2 or context().get_start_method() != "forkserver":
        return
    from multiprocessing import resource_tracker
    from multiprocessing.forkserver import ensure_running

    # Ctrl-C is this process's to answer: the server and what it starts never see it. The tracker comes first, because
    # its own start ends with letting Ctrl-C through again, and the server would start it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
