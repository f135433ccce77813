"""Bringing what was written to the disk, so that a power cut does not lose it.

A file that was written and renamed may be empty after a power cut: the system keeps bytes in memory for up to half a
minute, and may write names before them. So whatever publishes a file or a folder flushes first what it holds, then
renames it, then flushes the folder in which the name is. What it replaces is removed only after that.

Few files are flushed one by one. Many are flushed by one `syncfs`, which writes everything that waits for their file
system, other programs' data too: one call instead of some sixty for a capture, each of which would wait for the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, islice
from pathlib import Path

FEW = 8
"""Up to so many files and folders are flushed one by one."""
THREADS = 8
"""Where many must be flushed one by one, so many at a time: the disk then writes its journal once for several."""
NO_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
"""What some network file systems (CIFS, some FUSE) answer when a folder is flushed: they send names to the server at
once and have nothing to flush."""
NO_SYNCFS = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
SILENT_SYSTEMS = {0x65735546, 0x01021997}
"""FUSE and 9p, by the number that statfs gives: their syncfs returns before the server has written anything."""

MOUNT_ESCAPE = re.compile(rb"\\([0-7]{3})")
"""How Linux writes a space or a line feed in its list of what is mounted."""


class FlushError(OSError):
    """The disk did not take what was written. The bytes may be lost although writing them gave no error."""


def flush(*paths: Path) -> None:
    """Bring files, and folders with everything below them, to the disk, and their names too.

    Raises:
        FlushError: the disk refuses.
    """
    folders = list(_parents(paths))
    _flush(lambda: chain((entry for path in paths for entry in _below(path)), folders), folders, paths)


def flush_names(*paths: Path) -> None:
    """Bring the names of files and folders to the disk, after they were made or renamed, but not what they hold.

    Raises:
        FlushError: the disk refuses.
    """
    folders = list(_parents(paths))
    _flush(lambda: iter(folders), folders, ())


def flush_way(path: Path) -> None:
    """Bring the name of `path`, and of the folders on the way to it, to the disk: they may have been made with it.

    Raises:
        FlushError: the disk refuses.
    """
    flush_names(path)
    parent = path.absolute().parent
    device = parent.stat().st_dev
    for folder in parent.parents:
        if folder.stat().st_dev != device:
            break
        with contextlib.suppress(PermissionError):  # not ours, so not made with it
            _flush_one(folder)


def publish(temporary: Path, path: Path) -> None:
    """Give a file its name: on the disk before it can be seen, and for good when this returns.

    Raises:
        FlushError: the disk refuses.
        OSError: the file cannot be renamed.
    """
    flush(temporary)
    temporary.replace(path)
    flush_names(path)


def _below(path: Path) -> Iterator[Path]:
    """A file; or a folder and all files and folders in it. Links lead elsewhere and are not followed."""
    yield path
    if path.is_dir() and not path.is_symlink():
        for parent, folders, names in os.walk(path):
            yield from (Path(parent, name) for name in [*names, *folders])


def _parents(paths: Iterable[Path]) -> dict[Path, None]:
    return {path.absolute().parent: None for path in paths}


def _flush(entries: Callable[[], Iterator[Path]], folders: Sequence[Path], below: Sequence[Path]) -> None:
    """Flush all `entries`: `folders`, and everything in the files and folders `below`.

    Where there are many, one call for each file system does it, and what lies below is not gone through: a store may
    have millions of files.
    """
    wanted = list(islice(entries(), FEW + 1))
    if len(wanted) > FEW:
        mounts = _mounted(below)
        if mounts is not None and _flush_systems([*folders, *below, *mounts]):
            return
        wanted = list(entries())
        if mounts is None and _flush_systems(wanted):
            return
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(_flush_one, wanted))
    else:
        for path in wanted:
            _flush_one(path)
    _empty_drive(wanted)


def _mounted(paths: Sequence[Path]) -> list[Path] | None:
    """Where other file systems are mounted in the folders `paths`, by Linux' list; None if there is none."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        points = [MOUNT_ESCAPE.sub(lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4]) for line in lines]
    except (OSError, IndexError):
        return None
    tops = [os.fsencode(path.resolve()).rstrip(b"/") + b"/" for path in paths]
    return [Path(os.fsdecode(point)) for point in points if point.startswith(tuple(tops))]


def _flush_systems(paths: Iterable[Path]) -> bool:
    """Flush the file systems that the folders among `paths` are on, each once; False if one cannot be as a whole."""
    found: dict[int, Path] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            about = path.lstat()
            if stat.S_ISDIR(about.st_mode):
                found.setdefault(about.st_dev, path)
    return all(_syncfs(folder) for folder in found.values())


def _syncfs(folder: Path) -> bool:
    """Flush the file system that a folder is on; False where the system cannot."""
    library = _library()
    if library is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _kind(library, descriptor) in SILENT_SYSTEMS:
            return False
        if library.syncfs(descriptor) == 0:
            return True
        number = ctypes.get_errno()
        if number in NO_SYNCFS:
            return False
        raise FlushError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


@cache
def _library() -> ctypes.CDLL | None:
    """The C library, where its syncfs can be relied on: since Linux 5.8 it says when a write has failed."""
    if not sys.platform.startswith("linux"):
        return None
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is None or (int(version[1]), int(version[2])) < (5, 8):
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        return library if hasattr(library, "syncfs") and hasattr(library, "fstatfs") else None
    except (OSError, TypeError):
        return None


def _kind(library: ctypes.CDLL, descriptor: int) -> int | None:
    """The number of a kind of file system, the first word of what fstatfs fills in."""
    room = ctypes.create_string_buffer(512)
    if library.fstatfs(descriptor, room):
        return None
    return ctypes.c_long.from_buffer(room).value & 0xFFFFFFFF


def _flush_one(path: Path) -> None:
    """Flush one file, or the names in one folder; what is neither is passed over, and what was removed meanwhile."""
    try:
        mode = path.lstat().st_mode
        folder = stat.S_ISDIR(mode)
        if not (folder or stat.S_ISREG(mode)) or (folder and os.name == "nt"):  # Windows opens no folders
            return
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except FileNotFoundError:
        return
    except PermissionError:  # a folder in which one may write but not look, or a file made read-only by its mode
        if _flush_systems([path.parent]):
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in NO_FOLDERS):
            raise FlushError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _empty_drive(paths: list[Path]) -> None:
    """On macOS fsync leaves bytes in the drive's own memory; one F_FULLFSYNC after all of them empties that."""
    if sys.platform == "darwin":
        import fcntl

        for path in islice((path for path in paths if path.exists()), 1):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            except OSError as error:
                if error.errno not in NO_FOLDERS | {errno.ENOTTY}:
                    raise FlushError(error.errno, error.strerror, str(path)) from error
            finally:
                os.close(descriptor)
