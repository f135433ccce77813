"""One run at a time writes a store: an advisory lock on a file in its folder, gone with the process that held it.

Nothing is to be cleaned up after a process that was killed: the kernel lets go of the lock, and the file alone means
nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnlens.schemas.errors import InputError, StoreError

LOCK_NAME = "writer.partial"
"""Ends in `.partial`, so that readers and the manifest leave it alone."""
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
GRACE_SECONDS = 1.0
"""How long a lock that another run holds may take to prove stale: one that is just being taken or given up."""
OPENING_SECONDS = 60.0
"""How long a process waits for another one of the same run to put the store in place."""


class WriterLock:
    """A lock that is held. `exclusive`: no other process writes; otherwise only those of the same run do."""

    def __init__(self, folder: Path, descriptor: int | None, *, exclusive: bool, run: str | None = None) -> None:
        self._folder = folder
        self._run = run
        self._descriptor = descriptor
        self.exclusive = exclusive

    def share(self) -> None:
        """Let the other processes of this run in.

        Raises:
            InputError: another run came between, which is possible for a moment.
        """
        if self._descriptor is None:
            return
        self.exclusive = False
        flock(self._descriptor, exclusive=False, wait=True)
        holder = _record(self._descriptor)
        if holder.get("run") != self._run:
            raise InputError(_busy(self._folder, holder))

    def last(self) -> bool:
        """Give the shared lock up. True if no other process holds it any more: it is exclusive then."""
        if self._descriptor is None or self.exclusive:
            return True
        _unlock(self._descriptor)
        self.exclusive = flock(self._descriptor, exclusive=True)
        return self.exclusive

    def wait(self) -> None:
        """Return when no other process holds the lock."""
        if self._descriptor is not None and not self.exclusive:
            self.exclusive = flock(self._descriptor, exclusive=True, wait=True)

    def moved(self, folder: Path) -> None:
        """The locked folder is at `folder` now."""
        self._folder = folder

    def release(self) -> None:
        """Let go, and take the file away if it is nobody else's."""
        if self._descriptor is None:
            return
        if self.exclusive and _is_at(self._descriptor, self._folder):
            (self._folder / LOCK_NAME).unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None


def lock_store(folder: Path) -> WriterLock:
    """The exclusive lock on the store in `folder`, which is made if need be.

    Raises:
        InputError: another process is writing there.
    """
    return _take(folder, None)


def lock_run(folder: Path, run: str) -> WriterLock:
    """The lock for one process of `run`: exclusive for the first one there, which calls `share` when it has opened the
    store; shared for the others.

    Raises:
        InputError: a process of another run is writing there.
        StoreError: the file system knows no locks.
    """
    return _take(folder, run)


def refuse_busy(folder: Path, run: str | None = None) -> None:
    """Return if nobody writes there, or only processes of `run`.

    Raises:
        InputError: somebody does.
    """
    if not (folder / LOCK_NAME).exists():
        return
    lock = _take(folder, run)
    # The file stays: the process that wrote it may be about to take it again.
    lock.exclusive = False
    lock.release()


def _take(folder: Path, run: str | None) -> WriterLock:
    started = time.monotonic()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder was moved away this moment
            continue
        try:
            if flock(descriptor, exclusive=True):
                if _is_at(descriptor, folder):
                    _write_record(descriptor, run)
                    return WriterLock(folder, descriptor, exclusive=True, run=run)
            elif (
                run is not None
                and flock(descriptor, exclusive=False)
                and _is_at(descriptor, folder)
                and _record(descriptor).get("run") == run
            ):
                return WriterLock(folder, descriptor, exclusive=False, run=run)
            holder = _record(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in UNSUPPORTED:
                raise
            if run is None:
                return WriterLock(folder, None, exclusive=True)
            raise StoreError(
                f"{folder} is on a file system without locks ({error.strerror}): run one process, or write elsewhere"
            ) from None
        os.close(descriptor)
        patience = OPENING_SECONDS if run is not None and holder.get("run") == run else GRACE_SECONDS
        if time.monotonic() - started > patience:
            raise InputError(_busy(folder, holder))
        time.sleep(0.02)


def _write_record(descriptor: int, run: str | None) -> None:
    """Says who holds the lock, for the message that the next one gets."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"run": run, "process": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _record(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _busy(folder: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        who = f"process {holder.get('process')} on {holder.get('host')} since {holder.get('since')}"
    return f"{folder} is being written by {who}: wait for it to end, or give another -o"


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether the open file is still the one in the folder, not one that was taken away meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), (folder / LOCK_NAME).stat())
    except FileNotFoundError:
        return False


def flock(descriptor: int, *, exclusive: bool, wait: bool = False) -> bool:
    """Take or convert a lock; False if another process is in the way and `wait` was not asked for."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        raise OSError(errno.ENOSYS, "no flock here") from None
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_UN)
