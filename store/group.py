"""Captures that are finished wait for each other, so that one flush serves them all. See `durable`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

GROUP_SECONDS = 1.0
"""A group begins so long after the one before, at the earliest."""
Entry = TypeVar("Entry")


class Group(Generic[Entry]):
    """Calls `publish` with all entries that came since its last call, in a thread of its own: the model need not wait.

    Once `publish` has failed, every call raises its error.
    """

    def __init__(self, publish: Callable[[Sequence[Entry]], None]) -> None:
        self._publish = publish
        self._waiting: list[Entry] = []
        self._busy = self._hurry = self._closed = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, entry: Entry) -> None:
        """Publish `entry` with the next group. Returns at once."""
        with self._changed:
            self._check()
            self._waiting.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="attnlens-flush", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self) -> None:
        """Publish what waits, now, and return when that is done.

        Raises:
            Exception: what `publish` has raised.
        """
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error is not None or not (self._busy or self._waiting))
            self._hurry = False
            self._check()

    def close(self) -> None:
        """The same, and no more entries will come."""
        try:
            self.wait()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        last = -GROUP_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                rest = last + GROUP_SECONDS - time.monotonic()
                if rest > 0:
                    self._changed.wait_for(lambda: self._hurry or self._closed, rest)
                entries, self._waiting = self._waiting, []
                if not entries:
                    return
                self._busy = True
            last, error = time.monotonic(), None
            try:
                self._publish(entries)
            except Exception as found:  # noqa: BLE001 - handed to the model's thread, whatever it is
                error = found
            with self._changed:
                self._busy, self._error = False, error
                self._changed.notify_all()
                if error is not None:
                    return
