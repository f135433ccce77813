"""Where a tool writes: a folder or a file that appears whole, or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnlens.schemas.errors import AttnlensError, InputError, StoreError
from attnlens.store.durable import FlushError, flush, flush_way
from attnlens.store.exchange import take_place
from attnlens.store.faults import DISK_FULL, flush_failed
from attnlens.store.files import PARTIAL
from attnlens.store.places import LocalArchive
from attnlens.store.root import is_free, read_root, replaceable


@contextmanager
def new_store(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A name to write to, beside `path`; what is there when the block ends well is put in place of `path`.

    Raises:
        InputError: something is at `path`, and it is not to be replaced or is no store.
        StoreError: the disk refuses.
    """
    if not is_free(path):
        _may_replace(path, overwrite)
    with _beside(path) as temporary:
        yield temporary


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name beside `path`, which takes its place when the block ends well and is gone when it does not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _put(temporary, path)
    except OSError as error:
        raise _refused(error, path) from error
    finally:
        _remove(temporary)


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """The same for a file that is no store: any file may be replaced, a folder never.

    Raises:
        InputError: something is at `path`, and it is not to be replaced.
        StoreError: the disk refuses.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'exists'}: give another -o, or --overwrite")
    with _beside(path) as temporary:
        yield temporary


def _may_replace(path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise InputError(f"{path} exists: give another -o, or --overwrite")
    if path.is_dir():
        replaceable(path)
        return
    try:
        read_root(LocalArchive(path))
    except (AttnlensError, OSError):
        raise InputError(f"will not overwrite {path}: it is not an attnlens store; give another -o") from None


def _put(temporary: Path, path: Path) -> None:
    """Move what was written to its place; what was there then has its name, by which it goes."""
    if not path.exists() or (temporary.is_file() and path.is_file()):
        flush(temporary)
        temporary.replace(path)
        flush_way(path)
        return
    take_place(temporary, path, path.with_name(f".{path.name}.{secrets.token_hex(8)}.replaced"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _refused(error: OSError, path: Path) -> StoreError:
    if error.errno in DISK_FULL:
        return StoreError(f"disk full while writing {path}: nothing was kept; free some space and try again")
    if isinstance(error, FlushError):
        return flush_failed(error, path)
    return StoreError(f"cannot write {path}: {error.strerror or error}; nothing was kept")
