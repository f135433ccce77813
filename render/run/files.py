"""Picture files: they appear whole under their final name, or not at all."""

from __future__ import annotations

from pathlib import Path

from attnlens.schemas.errors import InputError
from attnlens.store.leftovers import sweep
from attnlens.store.special import refuse_special, refuse_url
from attnlens.store.workplace import try_out, write_whole


def prepare(folder: Path) -> None:
    """Make `folder`, see that a file can be written into it, and remove what a run that was killed has left there.

    Raises:
        InputError: it is a file, or cannot be made or written.
    """
    try:
        refuse_url(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: pictures need a folder, choose another -o")
        folder.mkdir(parents=True, exist_ok=True)
        try_out(folder)
    except OSError as error:
        raise InputError(f"cannot write pictures into {folder}: {error.strerror}; choose another -o") from error
    sweep(folder)


def write(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the whole file or none under its name.

    Raises:
        InputError: the disk is full, the folder is gone, a device has that name, or the like.
    """
    try:
        refuse_special(path)
        write_whole(path, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
