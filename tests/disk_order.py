"""What has reached the disk while a command ran in this process, for tests of the order of its system calls.

A file is on the disk if it is what it was when it was last flushed (inode, size, time of change); a folder if it holds
the names that it held then. Nothing here asks the code that is tested: calls are seen by Python's audit hook and by
wrapping `os.fsync` and libc's `syncfs`.
"""

# ruff: noqa: PTH100, PTH112, PTH115, PTH120
# Paths here are those that the functions of os were given.
from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

State = tuple[Any, ...]


def state(path: str) -> State:
    """What must be on the disk of a file, or of a folder: names of what is half-written do not matter."""
    about = os.lstat(path)
    if not os.path.isdir(path):
        return about.st_ino, about.st_size, about.st_mtime_ns
    with os.scandir(path) as entries:
        return about.st_ino, frozenset((entry.name, entry.inode()) for entry in entries if not partial(entry.name))


def partial(path: str) -> bool:
    return any(part.endswith((".partial", ".replaced")) for part in path.split("/"))


class Disk:
    """Watches everything below `root`, which is on the disk when it begins. `problems`: what came in a wrong order."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.problems: list[str] = []
        self.calls = {"fsync": 0, "syncfs": 0}
        self.published = 0
        self.flushed = {state(path) for path in self.everything()}
        self.old = {os.lstat(path).st_ino for path in self.everything() if not os.path.isdir(path)}

    def everything(self, below: str | None = None) -> Iterator[str]:
        top = below or self.root
        yield top
        for folder, folders, names in os.walk(top):
            yield from (f"{folder}/{name}" for name in [*folders, *names])

    def waiting(self, below: str, *, partials: bool) -> list[str]:
        """What is not on the disk: a file, or a folder and all in it."""
        found = [path for path in self.everything(below) if partials or not partial(path[len(self.root) :])]
        found = [path for path in found if path.rsplit("/", 1)[-1] != "writer.partial" and os.path.lexists(path)]
        return [path[len(self.root) :] for path in found if state(path) not in self.flushed]

    def need(self, what: str, waiting: list[str]) -> None:
        if waiting:
            self.problems.append(f"{what} before {len(waiting)} were flushed: {sorted(waiting)[:4]}")

    def moves(self, source: str, target: str) -> None:
        """A file or folder is about to get its name."""
        name, parts = target[len(self.root) :], target[len(self.root) + 1 :].split("/")
        parts = parts[next((at for at, part in enumerate(parts) if part.endswith(".zarr")), len(parts) - 1) :]
        if partial(name) or not source.startswith(self.root):
            return
        if len(parts) == 1:  # a store, or a file
            self.need(f"{name} is published", self.waiting(source, partials=True))
        elif parts[-1] == "zarr.json" and len(parts) == 2:  # the store's own
            self.need(f"{name} is replaced", self.waiting(source, partials=True))
        elif parts[-1] == "zarr.json" and len(parts) == 3 and is_complete(source):
            rest = [path for path in self.waiting(os.path.dirname(target), partials=False) if path != name]
            self.need(f"{name} is complete", rest + self.waiting(source, partials=True))
        elif len(parts) == 2 and os.path.isdir(source):  # a capture
            self.need(f"{name} is published", self.waiting(source, partials=True))
        else:
            return
        self.published += 1

    def removes(self, path: str) -> None:
        """Something is about to go."""
        if os.path.isdir(path) or (os.path.lexists(path) and not path.endswith(".partial")):  # inodes are used again
            kept = {os.lstat(one).st_ino for one in self.everything() if not one.startswith(path)}
            gone = {os.lstat(one).st_ino for one in self.everything(path)} & self.old
            if gone - kept:
                self.need(f"old {path[len(self.root) :]} is removed", self.waiting(self.root, partials=False))

    def ends(self) -> None:
        """The command has returned."""
        self.need("it returns", self.waiting(self.root, partials=False))


def is_complete(document: str) -> bool:
    about = json.loads(Path(document).read_bytes())["attributes"].get("attnlens", {})
    return bool(about.get("status") == "complete")


WATCHING: list[Disk] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not WATCHING or event not in ("os.rename", "os.remove", "shutil.rmtree"):
        return
    disk = WATCHING[0]
    path = os.path.abspath(os.fsdecode(args[0]))
    if path.startswith(disk.root):
        WATCHING.clear()  # what the hook itself does is not looked at
        try:
            if event == "os.rename":
                disk.moves(path, os.path.abspath(os.fsdecode(args[1])))
            else:
                disk.removes(path)
        finally:
            WATCHING.append(disk)


sys.addaudithook(_hook)


@contextmanager
def watched(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Watches `root` while the block runs."""
    disk = Disk(root)
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        before = state(path)
        fsync(descriptor)
        disk.calls["fsync"] += 1
        disk.flushed.add(before)

    def watched_syncfs(folder: Path) -> bool:
        before = {state(path) for path in disk.everything() if os.path.lexists(path)}
        done: bool = syncfs(folder)
        disk.calls["syncfs"] += done
        if done:
            disk.flushed |= before
        return done

    def watched_exchange(one: Path, other: Path) -> bool:
        disk.moves(str(one), str(other))
        return bool(exchange_(one, other))

    with monkeypatch.context() as patch:
        from attnlens.store import exchange

        exchange_ = exchange._exchange
        patch.setattr(exchange, "_exchange", watched_exchange)
        patch.setattr(os, "fsync", watched_fsync)
        try:  # without it every store would be found not to be flushed, and that is what a test wants to see
            from attnlens.store import durable

            syncfs = durable._syncfs
            patch.setattr(durable, "_syncfs", watched_syncfs)
        except ImportError:
            pass
        WATCHING.append(disk)
        try:
            yield disk
        finally:
            WATCHING.clear()
    disk.ends()
