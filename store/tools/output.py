"""Where a tool writes: a folder or a file that appears whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnlens.schemas.errors import AttnlensError, InputError, StoreError
from attnlens.store.durable import FlushError, flush, flush_way
from attnlens.store.exchange import BEFORE, take_place
from attnlens.store.faults import DISK_FULL, flush_failed
from attnlens.store.leftovers import sweep
from attnlens.store.lock import refuse_busy
from attnlens.store.places import LocalArchive
from attnlens.store.root import is_free, read_root, replaceable
from attnlens.store.special import refuse_special
from attnlens.store.workplace import workplace


@contextmanager
def new_store(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A name to write to, beside `path`; what is there when the block ends well is put in place of `path`.

    Raises:
        InputError: something is at `path`, and it is not to be replaced or is no store.
        StoreError: the disk refuses.
    """
    with refused(path):
        sweep(path.parent)
        refuse_special(path)
        if not is_free(path):
            _may_replace(path, overwrite)
    with _beside(path) as temporary:
        yield temporary


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of `path` when the block ends well and is gone when it does not."""
    with refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with workplace(path) as temporary:
            yield temporary
            _put(temporary, path)


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """The same for a file that is no store: any file may be replaced, a folder never.

    Raises:
        InputError: something is at `path`, and it is not to be replaced.
        StoreError: the disk refuses.
    """
    with refused(path):
        sweep(path.parent)
        refuse_special(path)
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"{path} {'is a folder' if path.is_dir() else 'exists'}: give another -o, or --overwrite")
    with _beside(path) as temporary:
        yield temporary


def _may_replace(path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise InputError(f"{path} exists: give another -o, or --overwrite")
    if path.is_dir():
        replaceable(path)
        refuse_busy(path)
        return
    try:
        read_root(LocalArchive(path))
    except (AttnlensError, OSError):
        raise InputError(f"will not overwrite {path}: it is not an attnlens store; give another -o") from None


def _put(temporary: Path, path: Path) -> None:
    """Move what was written to its place; what was there is then where that was, and goes with its folder."""
    if not path.exists() or (temporary.is_file() and path.is_file()):
        flush(temporary)
        temporary.replace(path)
        flush_way(path)
        return
    take_place(temporary, path, temporary.parent / BEFORE / path.name)


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is looked at or written becomes one line about it: StoreError."""
    try:
        yield
    except OSError as error:
        raise _refused(error, path) from error


def _refused(error: OSError, path: Path) -> StoreError:
    if error.errno in DISK_FULL:
        return StoreError(f"disk full while writing {path}: nothing was kept; free some space and try again")
    if isinstance(error, FlushError):
        return flush_failed(error, path)
    return StoreError(f"cannot write {path}: {error.strerror or error}; nothing was kept")
