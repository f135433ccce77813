"""The folder that a store is written to: made and locked, beside the store that it replaces where there is one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from attnlens.store.leftovers import sweep
from attnlens.store.lock import LOCK_NAME, WriterLock, lock_run, lock_store
from attnlens.store.notices import tell
from attnlens.store.replacement import MARK, Mode, begin, folder_for, give_back, publish, settle, standing, unfinished
from attnlens.store.root import check_free

LEAVING_SECONDS = 5.0
"""How long a process that has just found that it is not the last one may take to let go of the store's place."""


class Target:
    """A folder ready for a writer: that of the store, or one beside it (`replaces`) that takes its place at the end."""

    def __init__(
        self,
        place: Path,
        mode: Mode,
        *,
        run: str | None = None,
        joined: Callable[[Path], bool] = lambda _: False,
        afresh: bool = False,
    ) -> None:
        """Make and lock the folder.

        Args:
            place: where the store is in the end.
            mode: what to do with a store that is there.
            run: share the folder with the other processes of this run.
            joined: asked whether another process of this run has put its store at a path.
            afresh: of an unfinished replacement, keep nothing.

        Raises:
            InputError: another process is writing there, or what is there is no store that could be replaced.
            StoreError: several processes, and a file system without locks.
            OSError: the folder cannot be made.
        """
        sweep(place.parent)
        give_back(place)
        self.place = self.path = place
        self._run = run
        self._made: list[Path] = [] if place.exists() else [place]
        self._guard: WriterLock | None = None
        self.lock = self._take(place)
        try:
            if joined(place):
                return
            if self.lock.exclusive:
                done, begun = settle(place), unfinished(place)
                if begun is not None and joined(begun):  # and those who did have ended
                    self.path = begun
                else:
                    self.path = place if done and mode == "replace" and not afresh else folder_for(place, mode)
            elif mode in ("overwrite", "resume", "replace"):
                self.path = unfinished(place) or place
            if self.path != place:
                self._go_beside(mode, joined, afresh=afresh)
        except BaseException:
            self.undo()
            raise

    @property
    def replaces(self) -> bool:
        """Whether the store is written beside one that it is to replace."""
        return self.path != self.place

    def _go_beside(self, mode: Mode, joined: Callable[[Path], bool], *, afresh: bool) -> None:
        self._guard = self.lock
        if not self.path.exists():
            self._made.append(self.path)
        self.lock = self._take(self.path)
        if self.lock.exclusive and not joined(self.path):
            begin(self.path, self.place, afresh=afresh or mode == "overwrite")

    def _take(self, path: Path) -> WriterLock:
        return lock_store(path) if self._run is None else lock_run(path, self._run)

    def require_free(self) -> None:
        """Refuse a folder in which something is.

        Raises:
            InputError: another store was begun there meanwhile.
        """
        if not self.replaces:
            check_free(self.path)

    def share(self) -> None:
        """Let the other processes of this run in."""
        self.lock.share()
        if self._guard is not None:
            self._guard.share()

    def last(self) -> bool:
        """Give up the shared lock on where is written. True if no other process of the run writes there any more."""
        if self.lock.last():
            return True
        if self._guard is not None:  # who comes last needs it to put the store in its place
            self._guard.release()
        return False

    def publish(self) -> bool:
        """Put the complete store in its place. False if another process of the run has just come, who does it then.

        Raises:
            StoreError: what is there is not what was to be replaced.
            OSError: the system refuses.
        """
        if self._guard is None:
            return True
        until = time.monotonic() + LEAVING_SECONDS
        while not self._guard.last():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        publish(self.path, self.place)
        self.lock.moved(self.place)
        self.path = self.place
        return True

    def keep(self, why: str) -> None:
        """Say that the old store stays in its place, and `why`."""
        if self.replaces:
            tell(
                f"{self.place} is as it was, since {why}; its unfinished replacement is {self.path} "
                f"({standing(self.path)}): --resume goes on with it"
            )

    def discard(self) -> None:
        """Delete the folder beside, in which nothing is worth keeping."""
        if self.replaces:
            shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Let go of the locks."""
        self.lock.release()
        if self._guard is not None:
            self._guard.release()

    def undo(self) -> None:
        """Let go of the folder; what was made and has nothing in it goes, too."""
        if self.replaces and self.path in self._made and self.lock.exclusive:
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()
        for path in self._made:
            if path.is_dir() and all(entry.name in (LOCK_NAME, MARK) for entry in path.iterdir()):
                shutil.rmtree(path, ignore_errors=True)
