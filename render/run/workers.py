"""Jobs on several processes: this one and helpers beside it, each reading its own part of the store.

This process draws as well, so that the first picture does not wait for the helpers to start. Helpers are never copies
of this one, which may run threads; they ignore Ctrl-C, which is this process's to answer, and end when this process
does, however it ends.

A helper is a process and a pipe. `ProcessPoolExecutor` has threads and locks of its own between the two, and where
Ctrl-C falls among them it waits for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import TypeAlias

from attnlens.render.run.ctrl_c import held, noticed
from attnlens.render.run.helpers import context, prepare
from attnlens.render.run.jobs import Job, Outcome, write
from attnlens.render.run.memory import return_freed_memory
from attnlens.schemas.errors import AttnlensError
from attnlens.store.processes import without_script

WORTH = 48
"""Pictures that pay for starting one more process."""

_AHEAD = 2
"""Jobs that each helper has at hand, so that it never waits for the next one."""

Answer: TypeAlias = Outcome | Exception


def run(jobs: Iterable[Job], workers: int, count: int) -> Iterator[Outcome]:
    """Draw jobs on up to `workers` processes, fewer if `count` pictures are not worth them.

    Jobs are taken one by one, as they are needed. Outcomes come in no order.

    Raises:
        AttnlensError: what a job raised, or a helper died.
    """
    return_freed_memory()
    wanted = min(workers, 1 + count // WORTH) - 1
    left = iter(jobs)
    if wanted < 1:
        yield from map(_draw, left)
        return
    if (at_once := next(left, None)) is not None:
        yield _draw(at_once)  # helpers that start would slow the first pictures down
    helpers: list[_Helper] = []
    try:
        with held():
            prepare(workers)
            helpers += (_Helper() for _ in range(wanted))
        yield from _share(left, helpers)
    finally:
        with held():
            for helper in helpers:
                helper.stop()


def _share(left: Iterator[Job], helpers: list[_Helper]) -> Iterator[Outcome]:
    while True:
        for helper in helpers:
            for job in islice(left, _AHEAD - helper.busy):
                helper.give(job)
        own = next(left, None)
        if own is not None:
            yield _draw(own)
        busy = {helper.pipe: helper for helper in helpers if helper.busy}
        if not busy and own is None:
            return
        for pipe in wait(list(busy), 0 if own is not None else None):
            yield busy[pipe].take()  # type: ignore[index]


def _draw(job: Job) -> Outcome:
    with noticed() as check:
        return write(job, check)


class _Helper:
    """One process that draws what it is given, in order."""

    def __init__(self) -> None:
        self.pipe: Connection[Job, Answer]
        self.pipe, theirs = context().Pipe()
        self.busy = 0
        """Jobs given whose outcome was not taken."""
        self._process = context().Process(target=_serve, args=(theirs,), daemon=True)
        with without_script():
            self._process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.busy += 1
        with _alive():
            self.pipe.send(job)

    def take(self) -> Outcome:
        """The outcome of the first job; raises what the job raised."""
        with _alive():
            answer = self.pipe.recv()
        self.busy -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """End it at once: it draws nothing, or a picture that nobody waits for any more."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise AttnlensError(
            "a drawing process died, for want of memory perhaps: try --workers 1; --resume keeps what is drawn"
        ) from error


def _serve(pipe: Connection[Answer, Job]) -> None:
    """In a helper: draw what comes."""
    return_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            pipe.send(_outcome(pipe.recv()))


def _outcome(job: Job) -> Answer:
    try:
        return write(job)
    except Exception as error:  # noqa: BLE001 - raised again where the job was given
        if not isinstance(error, AttnlensError):
            error.add_note(traceback.format_exc())
        return error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
