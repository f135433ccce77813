"""Where something is written before it gets its name: beside that, under a name by which a later run finds it.

`.attnlens-HEX.partial` is a folder in which a store or a file is made, or a small file itself. Who writes there holds a
shared lock, on the file `lock` in the folder or on the file itself, which goes with the process however it ends. What
nobody holds was left by a process that was killed: see `leftovers`.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attnlens.store.durable import flush_names
from attnlens.store.exchange import BEFORE
from attnlens.store.files import PARTIAL
from attnlens.store.lock import UNSUPPORTED, flock

WORKPLACE = re.compile(rf"\.attnlens-[0-9a-f]{{16}}{re.escape(PARTIAL)}")
"""Names of such folders and files."""
MADE = "made"
"""What is made in a folder."""
HELD = "lock"
"""The file in a folder that is locked; it says for what the folder is."""
SCRATCH = "scratch"
"""How the names of further files in a folder begin, of use while it is worked in."""


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """A path to write to what is to be at `target`, in a folder beside it that is gone at the end.

    Raises:
        OSError: the folder cannot be made.
    """
    folder, descriptor = _new_folder(target)
    try:
        yield folder / MADE
    finally:
        if put_back_in(folder, target.name) is not False:
            empty(folder)
        os.close(descriptor)


@contextmanager
def helping(made: Path) -> Iterator[None]:
    """For a process of `multiprocessing` that writes to the path `made` in another one's workplace: it ends when that
    one is killed, and until then nobody takes the folder for a leftover. For any other path this does nothing.

    Raises:
        OSError: the workplace is gone.
    """
    if not WORKPLACE.fullmatch(made.parent.name):
        yield
        return
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), name="attnlens-parent", daemon=True).start()
    descriptor = os.open(made.parent / HELD, os.O_RDWR)
    try:
        if not _hold(descriptor, made.parent / HELD):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(made.parent))
        yield
    finally:
        os.close(descriptor)


def _end_with(parent: Any) -> None:
    """End this process when its parent has ended."""
    parent.join()
    os._exit(1)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is not flushed: under its name it is whole.

    Raises:
        OSError: the disk refuses; nothing is left.
    """
    temporary, descriptor = _new_file(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if os.name == "nt":  # where an open file cannot be renamed, and there are no locks either
                file.close()
            temporary.replace(path)  # while the lock is held
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def try_out(folder: Path) -> None:
    """See whether a file can be made in a folder.

    Raises:
        OSError: it cannot.
    """
    path, descriptor = _new_file(folder)
    os.close(descriptor)
    path.unlink(missing_ok=True)


def put_back_in(folder: Path, name: str) -> bool | None:
    """Where two names cannot be exchanged in one step: give back what was taken from its place in a workplace.

    Returns:
        True: it was. False: something else is in its place, or the system refuses, and it must stay. None: nothing was
        taken away, or what has replaced it is in its place.
    """
    before, place = folder / BEFORE / name, folder.parent / name
    if not os.path.lexists(before):
        return None
    if os.path.lexists(place):
        return False if os.path.lexists(folder / MADE) else None
    try:
        before.rename(place)
        flush_names(before, place)
    except OSError:
        return False
    return True


def empty(folder: Path) -> bool:
    """Remove a workplace, its lock last. False if something cannot be removed."""
    with suppress(OSError):
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == HELD):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        folder.rmdir()
        return True
    return False


def _new_folder(target: Path) -> tuple[Path, int]:
    """A new workplace for `target`, and its lock."""
    while True:
        folder = target.parent / _name()
        folder.mkdir()
        try:
            descriptor = os.open(folder / HELD, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:  # taken for a leftover this moment
            continue
        except BaseException:
            folder.rmdir()
            raise
        try:
            if not _hold(descriptor, folder / HELD):
                os.close(descriptor)
                continue
            about = {"folder": folder.name, "of": target.name}
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        except BaseException:
            empty(folder)
            os.close(descriptor)
            raise
        return folder, descriptor


def _new_file(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / _name()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _hold(descriptor, path):
            return path, descriptor
        os.close(descriptor)


def _name() -> str:
    return f".attnlens-{secrets.token_hex(8)}{PARTIAL}"


def _hold(descriptor: int, path: Path) -> bool:
    """Take the shared lock. False if who looks for leftovers was faster: the file is being removed, or is gone."""
    try:
        held = flock(descriptor, exclusive=False)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return True  # without locks nothing is ever taken for a leftover
    try:
        return held and os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
