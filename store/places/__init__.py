"""Where a store may be: a folder, a `.zarr.zip`, a URL. Readers ask a `Place` for bytes and never open a path."""

from __future__ import annotations

import os
from collections.abc import Hashable
from os import PathLike
from pathlib import Path, PurePath

from attnlens.schemas.errors import StoreError
from attnlens.store.places.archive import Archive, is_archive
from attnlens.store.places.folder import Folder
from attnlens.store.places.place import Place

ZIP_SUFFIX = ".zarr.zip"


def open_place(where: str | PathLike[str]) -> Place:
    """The place that a path names. What is inside is not looked at.

    Raises:
        StoreError: nothing is there, or it is neither a folder nor a zip.
    """
    path = Path(where)
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise StoreError(f"{where}: no such store")
    if not is_archive(path):
        raise StoreError(f"{where} is a file; a store is a folder with a zarr.json, or a {ZIP_SUFFIX}")
    return Archive(path)


def stem_of(where: str | PathLike[str]) -> str:
    """The name of a store without what says that it is one: `run` of `a/run.zarr.zip`."""
    name = PurePath(os.fspath(where).rstrip("/")).name
    return name.removesuffix(".zip").removesuffix(".zarr") or "store"


def file_version(where: str | PathLike[str], path: str) -> Hashable:
    """What changes when a file of the store there does; asked for often, so nothing is opened.

    Raises:
        OSError: there is no such file.
    """
    place = Path(where)
    about = (place if place.is_file() else place / path).stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def file_time(where: str | PathLike[str], path: str) -> int:
    """When a file of the store there was last written, in nanoseconds.

    Raises:
        OSError: there is no such file.
    """
    place = Path(where)
    return (place if place.is_file() else place / path).stat().st_mtime_ns


def absolute(where: str | PathLike[str]) -> str:
    """What names the same place from another working folder."""
    return str(Path(where).resolve())


__all__ = ["Archive", "Folder", "Place", "absolute", "file_time", "file_version", "open_place", "stem_of"]
