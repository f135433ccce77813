"""The folder that a store is written to: made, locked, and emptied where another store is replaced."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from attnlens.store.lock import LOCK_NAME, WriterLock, lock_run, lock_store
from attnlens.store.root import check_free, is_free, replaceable


class Target:
    """A folder ready for a writer. Until `keep`, `undo` gives back what was there before."""

    def __init__(self, path: Path, *, replace: Callable[[], bool], run: str | None = None) -> None:
        """Make and lock the folder.

        Args:
            path: where it is.
            replace: asked once nobody else writes there: is what is there to be moved aside?
            run: share the folder with the other processes of this run.

        Raises:
            InputError: another process is writing there, or what is there is no store that could be replaced.
            StoreError: several processes, and a file system without locks.
            OSError: the folder cannot be made.
        """
        self.path = path
        self._run = run
        self._aside: Path | None = None
        self._made = not path.exists()
        self.lock = self._take()
        try:
            if self.lock.exclusive and not is_free(path) and replace():
                self._move_aside()
        except BaseException:
            self.undo(begun=False)
            raise

    def _take(self) -> WriterLock:
        return lock_store(self.path) if self._run is None else lock_run(self.path, self._run)

    def _move_aside(self) -> None:
        replaceable(self.path)
        aside = self.path.with_name(f".{self.path.name}.{time.time_ns()}.replaced")
        self.path.rename(aside)
        self._aside = aside
        (aside / LOCK_NAME).unlink(missing_ok=True)
        self.lock.release()
        self.lock = self._take()

    def require_free(self) -> None:
        """Refuse a folder in which something is.

        Raises:
            InputError: another store was begun there meanwhile.
        """
        check_free(self.path)

    def keep(self) -> None:
        """What was begun here is good: delete what it replaces."""
        if self._aside is not None:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside = None

    def undo(self, *, begun: bool) -> None:
        """Let go of the folder. `begun`: what is in it now was written by us; an old store is better than that."""
        if begun and self._aside is not None:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.release()
        self._give_back()

    def _give_back(self) -> None:
        if self._aside is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self._aside.rename(self.path)
            self._aside = None
        elif self._made and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
