"""Names that a file written here must not take: those of devices, pipes and sockets, and URLs."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from attnlens.schemas.errors import InputError

URL = re.compile(r"(https?|s3|gs|hf|file):(/|$)", re.IGNORECASE)
"""How a path begins that was made of a URL."""
KINDS = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def special(path: Path) -> str | None:
    """What is at `path`, or where a link there leads, if it is neither file nor folder: "a pipe".

    Raises:
        OSError: the system does not let it be looked at.
    """
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except FileNotFoundError:
        return None


def refuse_url(path: Path) -> None:
    """InputError for a path that was made of a URL, and would be a folder of that name."""
    if URL.match(str(path)):
        raise InputError(f"-o {path} looks like a URL: what is written is written to this machine; give a path")


def refuse_special(path: Path) -> None:
    """Return if a file or folder may be put at `path`.

    As root, renaming one to `/dev/null` would replace the device. URLs are for reading.

    Raises:
        InputError: it is a URL, or something is there that is no file or folder, or a link that leads nowhere.
        OSError: the system does not let it be looked at.
    """
    refuse_url(path)
    if (kind := special(path)) is not None:
        raise InputError(f"{path} is {kind}: give another -o, a file or folder is written")
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to {path.readlink()}, where nothing is: remove it, or give another -o")


def followed(path: Path) -> Path:
    """Where a store is written that is to be at `path`: where a link there leads, in the end.

    Raises:
        InputError: `path` was made of a URL, leads round in a circle, or is none that the system takes.
    """
    refuse_url(path)
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle, before Python 3.13
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; give another -o") from None
