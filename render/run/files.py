"""Picture files: they appear whole under their final name, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from attnlens.schemas.errors import InputError


def prepare(folder: Path) -> None:
    """Make `folder` and see that a file can be written into it.

    Raises:
        InputError: it is a file, or cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: pictures need a folder, choose another -o")
    probe = _temporary(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write pictures into {folder}: {error.strerror}; choose another -o") from error


def write(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the whole file or none under its name.

    Raises:
        InputError: the disk is full, the folder is gone, or the like.
    """
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)  # noqa: PTH105  (Path.replace would hide that this is the atomic step)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
