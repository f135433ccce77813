"""Jobs on several processes: this one and helpers beside it, each reading its own part of the store.

This process draws as well, so that the first picture does not wait for the helpers to start. Helpers are never copies
of this one, which may run threads; they ignore Ctrl-C, which is this process's to answer, and end when this process
does, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for

from attnlens.render.run.helpers import context, prepare
from attnlens.render.run.jobs import Job, Outcome, write
from attnlens.render.run.memory import return_freed_memory
from attnlens.schemas.errors import AttnlensError

WORTH = 48
"""Pictures that pay for starting one more process."""

_AHEAD = 2
"""Jobs that each helper has at hand, so that it never waits for the next one."""


def run(jobs: Iterable[Job], workers: int, count: int) -> Iterator[Outcome]:
    """Draw jobs on up to `workers` processes, fewer if `count` pictures are not worth them.

    Jobs are taken one by one, as they are needed. Outcomes come in no order.

    Raises:
        AttnlensError: what a job raised, or a helper died.
    """
    return_freed_memory()
    helpers = min(workers, 1 + count // WORTH) - 1
    left = iter(jobs)
    if helpers < 1:
        yield from map(write, left)
        return
    if (at_once := next(left, None)) is not None:
        yield write(at_once)  # helpers that start would slow the first pictures down
    prepare(workers)
    pool = ProcessPoolExecutor(helpers, mp_context=context(), initializer=_begin)
    running: set[Future[Outcome]] = set()
    try:
        while True:
            running |= {pool.submit(write, job) for job in islice(left, _AHEAD * helpers - len(running))}
            own = next(left, None)
            if own is not None:
                yield write(own)
            elif not running:
                return
            ended, running = wait(running, 0 if own is not None else None, FIRST_COMPLETED)
            yield from (future.result() for future in ended)
    except BrokenProcessPool as error:
        raise AttnlensError(
            "a drawing process died, for want of memory perhaps: try --workers 1; --resume keeps what is drawn"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """In a helper, first of all."""
    return_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
