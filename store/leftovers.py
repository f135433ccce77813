"""What processes that were killed have left beside what they wrote: found, named and removed by the next one.

Only a `workplace` that nobody holds is a leftover, and only if nothing is in it but what a workplace holds. Links are
not followed. On a file system without locks nobody can tell, and nothing is touched.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path

from attnlens.store.durable import flush_names
from attnlens.store.exchange import BEFORE
from attnlens.store.lock import flock
from attnlens.store.notices import tell
from attnlens.store.workplace import HELD, MADE, SCRATCH, WORKPLACE, empty, put_back_in

NAMED = 3
"""So many half-written files are named in a line; a run of many processes that is killed may leave one of each."""


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder, each named in a line.

    A store that such a process had taken from its place, where two names cannot be exchanged in one step, is put back.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if WORKPLACE.fullmatch(entry.name))
    except OSError:
        return
    files = []
    for name in names:
        path = folder / name
        with suppress(OSError):  # gone this moment, or not ours to touch
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                _clear(path)
            elif stat.S_ISREG(mode) and _take_file(path):
                files.append(name)
    if files:
        named = ", ".join(files[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
        tell(f"removed {named} from {folder}: half-written files of a run that was killed")


def _clear(path: Path) -> None:
    """Remove a workplace if nobody holds it."""
    try:
        descriptor = _open(path / HELD)
    except FileNotFoundError:
        path.rmdir()  # killed before there was a lock; refused if anything is in it
        tell(f"removed {path}, an empty folder of a run that was killed")
        return
    try:
        if not _is_nobodys(descriptor, path / HELD):
            return
        name = _made_for(descriptor, path)
        if name is None:
            return
        place = path.parent / name
        match put_back_in(path, name):
            case True:
                tell(f"put {place} back in its place, from which a run that was killed had taken it")
            case False:
                tell(f"{path / BEFORE} holds what was at {place} when a run was killed: move it, then delete {path}")
                return
        # What was replaced may be in there, and the name of what replaced it not on the disk yet.
        flush_names(path, path / HELD)
        what = f"what a run that was killed had left of {place}" if name else "which a run that was killed had left"
        tell(f"removed {path}, {what}" if empty(path) else f"cannot remove {path}, {what}: delete it")
    finally:
        os.close(descriptor)


def _take_file(path: Path) -> bool:
    """Remove a half-written file if nobody holds it."""
    descriptor = _open(path)
    try:
        if not _is_nobodys(descriptor, path):
            return False
        path.unlink()
        return True
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags)


def _is_nobodys(descriptor: int, path: Path) -> bool:
    """Whether a file of ours is open that no process holds, and nobody takes up from now on.

    Raises:
        OSError: the file system has no locks.
    """
    about = os.fstat(descriptor)
    return (
        stat.S_ISREG(about.st_mode)
        and about.st_nlink == 1
        and flock(descriptor, exclusive=True)
        and os.path.samestat(about, path.lstat())
    )


def _made_for(descriptor: int, path: Path) -> str | None:
    """The name of what was being made in a workplace, "" if nothing was begun; None if it is none, or holds more."""
    found = {entry.name for entry in path.iterdir()} - {HELD}
    if not found:
        return ""
    try:
        record = json.loads(os.pread(descriptor, 1 << 16, 0))
        name = record["of"] if record["folder"] == path.name else None
    except (ValueError, LookupError, TypeError):
        return None
    if not isinstance(name, str) or Path(name).name != name:
        return None
    others = {entry for entry in found - {MADE, BEFORE} if not entry.startswith(SCRATCH)}
    return name if not others and set(_taken(path)) <= {name} else None


def _taken(path: Path) -> list[str]:
    """What had been taken from its place by way of a workplace."""
    return [entry.name for entry in (path / BEFORE).iterdir()] if (path / BEFORE).is_dir() else []
