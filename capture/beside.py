"""Work beside the model: readings of a lens go on in a thread of their own while the next tokens are made.

Decoding moves weights through one core and leaves the others idle; what a lens multiplies for a long prompt fills them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from attnlens.capture.lenses.blocked import crew
from attnlens.progress import Progress

WAITING_BYTES = 24 << 20
"""Residuals that may wait to be read; the model waits for more."""
CATCH_UP_SECONDS = 10.0
"""How long readings may be late before the first row is announced: time for those of a prompt."""
LATE_SECONDS = 0.5
"""How late readings may be once rows are announced: what is committed follows the model closely."""

NOTICED_SECONDS = 0.3
"""A wait for the last readings that is longer than this is told."""
SHOWN_SECONDS = 0.1
"""How often it is told how many are left."""

Job = Callable[[], None]


class Beside:
    """Does jobs in the order in which they come, and announces what they complete.

    Without `threaded` a job is done at once, by who brings it. An announcement is made when all jobs that came before
    it are done. The first is held back until the jobs have caught up: from then on none is late.
    """

    def __init__(self, *, threaded: bool) -> None:
        self._jobs: deque[tuple[float, int, Job]] = deque()
        self._announcements: deque[tuple[int, Job]] = deque()
        self._bytes = self._brought = self._done = 0
        self._announced = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if threaded:
            crew().held += 1
            count, ready = torch.get_num_threads(), threading.Event()
            self._thread = threading.Thread(target=self._run, args=(ready,), name="attnlens-beside", daemon=True)
            self._thread.start()
            ready.wait()
            torch.set_num_threads(count)  # later threads have what was set last, by whichever thread

    def do(self, job: Job, size: int) -> None:
        """Does a job that holds `size` bytes, now or soon; waits while too much is to be done.

        Raises whatever an earlier job has raised.
        """
        if self._thread is None:
            job()
            return
        with self._changed:
            self._check()
            self._jobs.append((time.monotonic(), size, job))
            self._brought += 1
            self._bytes += size
            self._changed.notify_all()
        self._wait_for(self._is_in_time)

    def announce(self, job: Job) -> None:
        """Does a small job once all before it are done; a later one stands for those before it."""
        if self._thread is None:
            job()
            return
        with self._changed:
            self._check()
            self._announcements.append((self._brought, job))
            self._announce(time.monotonic())

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Torch leaves a core to the jobs: operations that are spread over all wait for the one that is taken.

        For tokens one by one, whose products are bound by memory and no slower for it.
        """
        count = torch.get_num_threads()
        if self._thread is None or count == 1:
            yield
            return
        torch.set_num_threads(count - 1)
        try:
            yield
        finally:
            torch.set_num_threads(count)

    def wait(self, progress: Progress | None = None) -> None:
        """Waits until everything is done and announced. Raises whatever a job has raised.

        A wait that somebody would notice is a stage of its own, "lens", of the jobs that are left.
        """
        if self._thread is None:
            return
        with _every_core():
            if progress is not None and not self._finished(NOTICED_SECONDS):
                left = self._brought - self._done
                progress.stage("lens", total=left, unit="blocks")
                while not self._finished(SHOWN_SECONDS):
                    now = self._brought - self._done
                    progress.advance(left - now)
                    left = now
                progress.advance(left)
            self._finished(None)

    def _finished(self, seconds: float | None) -> bool:
        """Waits until everything is done and announced, or some time has passed; whether it is."""
        return self._wait_for(lambda: not self._jobs and not self._announcements, seconds)

    def close(self) -> None:
        """Ends the thread once all is done and announced, or a job has failed, after which none is begun.

        So what was brought before a model failed is kept. Raises nothing but KeyboardInterrupt, which drops the rest.
        """
        if self._thread is None:
            return
        try:
            with suppress(Exception):  # has been raised where a job was brought, or what is raised now came before it
                self.wait()
        finally:
            with self._changed:
                self._closed = True
                self._jobs.clear()
                self._announcements.clear()
                self._changed.notify_all()
            self._thread.join()
            self._thread = None
            crew().held -= 1

    def _wait_for(self, state: Callable[[], bool], seconds: float | None = None) -> bool:
        """Waits for a state of the jobs, no longer than some time; meanwhile they get every core. Whether it is so."""
        with self._changed:
            if not state():
                with _every_core():
                    self._changed.wait_for(lambda: self._error is not None or state(), seconds)
            self._check()
            return state()

    def _is_in_time(self) -> bool:
        patience = LATE_SECONDS if self._announced else CATCH_UP_SECONDS
        return self._bytes <= WAITING_BYTES and (not self._jobs or time.monotonic() - self._jobs[0][0] < patience)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, ready: threading.Event) -> None:
        crew().beside = True
        torch.set_num_threads(1)
        ready.set()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or bool(self._jobs))
                    if self._closed:
                        return
                    _, size, job = self._jobs[0]
                with torch.no_grad():
                    job()
                del job
                with self._changed:
                    if self._jobs:
                        self._jobs.popleft()
                    self._done += 1
                    self._bytes -= size
                    self._announce(time.monotonic())
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever brings the next job
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            crew().beside = False

    def _announce(self, now: float) -> None:
        """Makes the last announcement that is due."""
        if not self._announced and self._jobs and now - self._jobs[0][0] >= LATE_SECONDS:
            return
        due = None
        while self._announcements and self._announcements[0][0] <= self._done:
            due = self._announcements.popleft()[1]
        if due is not None:
            self._announced = True
            due()


@contextmanager
def _every_core() -> Iterator[None]:
    """The jobs have the machine to themselves."""
    before, crew().beside = crew().beside, False
    try:
        yield
    finally:
        crew().beside = before
