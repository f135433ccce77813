"""What takes another's place, a folder or a file, in one step where the system has one.

Linux and macOS exchange two names at once: a reader sees the old folder or the new one, and so does whoever comes after
a process that was killed. Some file systems cannot (NFS, for one). There it takes two steps, and what a process that
was killed between them left is put right by `put_back` before anything else is written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from attnlens.store.durable import flush, flush_names
from attnlens.store.files import PARTIAL

BEFORE = "before"
"""Where, in a folder that ends in `.partial`, the old folder waits while the new one takes its place."""
AT_FDCWD = -100
RENAME_EXCHANGE = 2
"""Flag of renameat2 on Linux, and (RENAME_SWAP) of renamex_np on macOS."""
UNABLE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def take_place(new: Path, place: Path, waiting: Path) -> None:
    """Put what is at `new` at `place`, and what is there at `new`; where that takes two steps, by way of `waiting`.

    What `put_back` is to find waits in the folder `before` of one that ends in `.partial`. What is new is on the disk
    before it takes the place, and has it for good when this returns: only then may the old one be removed.

    Raises:
        OSError: the system refuses; everything is where it was. After a FlushError the two may have changed places.
    """
    flush(new)
    if not _exchange(new, place):
        _in_steps(new, place, waiting)
    flush_names(new, place)


def put_back(store: Path) -> None:
    """Put folders back that a killed process has taken from their places in `store`. Nobody else may be writing there.

    Raises:
        OSError: the system refuses.
    """
    for before in sorted(store.glob(f"*{PARTIAL}/{BEFORE}/*")):
        place = store / before.name
        if not place.exists():
            before.rename(place)
            flush_names(before, place)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where that is not possible."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, RENAME_EXCHANGE)
        else:
            failed = library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    except (AttributeError, TypeError):  # an older C library, or none of that kind
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _in_steps(new: Path, place: Path, waiting: Path) -> None:
    waiting.parent.mkdir(exist_ok=True)
    place.rename(waiting)
    try:
        new.rename(place)
    except BaseException:
        waiting.rename(place)
        raise
    waiting.rename(new)
