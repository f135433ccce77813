"""Where a store may be: a folder, a `.zarr.zip`, a URL. Readers ask a `Place` for bytes and never open a path."""

from __future__ import annotations

import os
from collections.abc import Hashable
from os import PathLike
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.nearest import did_you_mean
from attnlens.store.places.archive import Archive, LocalArchive, is_archive
from attnlens.store.places.fetch import is_url
from attnlens.store.places.folder import Folder
from attnlens.store.places.place import GROUP_DOCUMENT, Place
from attnlens.store.special import special

ZIP_SUFFIX = ".zarr.zip"


def open_place(where: str | PathLike[str]) -> Place:
    """The place that a path or URL names. What is inside is not looked at.

    Raises:
        InputError: a URL that is not understood.
        MissingExtraError: a URL, and the extra `remote` is not installed.
        StoreError: nothing is there, or it is neither a folder nor a zip.
    """
    name = os.fspath(where)
    if is_url(name):
        if (local := _local(name)) is not None:
            return open_place(local)
        from attnlens.store.places.far import far_place

        return far_place(name)
    path = Path(where)
    try:
        if path.is_dir():
            return Folder(path)
        if not path.exists():
            raise StoreError(f"{where}: no such store{_nearest(path)}")
        if not path.is_file() or not is_archive(path):
            what = special(path) or "a file"
            raise StoreError(f"{where} is {what}; a store is a folder with a zarr.json, or a {ZIP_SUFFIX}")
        return LocalArchive(path)
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL; a parent that may not be looked at
        raise StoreError(f"{where}: no such store ({getattr(error, 'strerror', None) or error})") from None


def _nearest(path: Path) -> str:
    """What was probably meant by a path where nothing is: stores beside it, with or without their endings."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    try:
        beside = sorted(one for one in path.parent.iterdir() if _may_be_store(one))
    except OSError:
        return ""
    before = "" if path.parent == Path() else f"{path.parent}/"
    same = [before + one.name for one in beside if stem_of(one) == stem_of(path)]
    if same:
        return f"; did you mean {' or '.join(same)}?"
    return did_you_mean(path.name, [one.name for one in beside], before=before)


def _may_be_store(path: Path) -> bool:
    return path.name.endswith((".zarr", ZIP_SUFFIX)) or (path / GROUP_DOCUMENT).is_file()


def stem_of(where: str | PathLike[str]) -> str:
    """The name of a store without what says that it is one: `run` of `a/run.zarr.zip`."""
    name = PurePath(unquote(os.fspath(where)).rstrip("/")).name
    return name.removesuffix(".zip").removesuffix(".zarr") or "store"


def file_version(where: str | PathLike[str], path: str) -> Hashable:
    """What changes when a file of the store there does; asked for often, so nothing is opened.

    Raises:
        OSError: there is no such file.
    """
    if (local := _local(where)) is None:
        return 0
    about = (local if local.is_file() else local / path).stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def file_time(where: str | PathLike[str], path: str) -> int:
    """When a file of the store there was last written, in nanoseconds.

    Raises:
        OSError: there is no such file.
    """
    if (local := _local(where)) is None:
        return 0
    return (local if local.is_file() else local / path).stat().st_mtime_ns


def beside(where: str | PathLike[str], name: str) -> Path:
    """The path of that name beside a store on this machine, or here for one far away."""
    local = _local(where)
    return Path(name) if local is None else local.with_name(name)


def absolute(where: str | PathLike[str]) -> str:
    """What names the same place from another working folder."""
    local = _local(where)
    return os.fspath(where) if local is None else str(local.resolve())


def _local(where: str | PathLike[str]) -> Path | None:
    """The path on this machine, None for what is far away. InputError for a file:// URL that names none."""
    name = os.fspath(where)
    if name.lower().startswith("file://"):
        try:
            parts = urlsplit(name)
            path = Path(unquote(parts.path))
            elsewhere = parts.netloc.lower() not in ("", "localhost")
            if elsewhere or parts.query or parts.fragment or not path.name or "\0" in str(path):
                raise ValueError
        except ValueError:
            raise InputError(f"{name} is not understood: expected file:///PATH, or the path itself") from None
        return path
    return None if is_url(name) else Path(where)


__all__ = [
    "Archive",
    "Folder",
    "LocalArchive",
    "Place",
    "absolute",
    "beside",
    "file_time",
    "file_version",
    "open_place",
    "stem_of",
]
