"""Folders that are expensive to make: made once, checked each time, safe when several processes want one at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attnlens.store.leftovers import sweep
from attnlens.store.workplace import SCRATCH, workplace

SEAL = "attnlens.json"


def cache_folder() -> Path:
    """$ATTNLENS_CACHE, else $XDG_CACHE_HOME/attnlens, else ~/.cache/attnlens."""
    if own := os.environ.get("ATTNLENS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attnlens"


def sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether every file of a folder that `seal` closed is there, byte for byte."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))["sha256"]
        with ThreadPoolExecutor(2) as pool:
            return bool(sealed) and list(pool.map(lambda name: sha256(folder / name), sealed)) == list(sealed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def seal(folder: Path) -> None:
    """Record the sha256 of every file of a finished folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SEAL)
    record = {"sha256": {path.name: sha256(path) for path in files}}
    (folder / SEAL).write_text(json.dumps(record, indent=1), encoding="utf-8")


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made by `make(empty folder)` if it is not there or not whole.

    Whoever finishes first wins; the others use theirs away. A damaged folder is set aside before it is replaced.
    """
    target = cache_folder() / name
    if is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with workplace(target) as made:
        made.mkdir()
        make(made)
        seal(made)
        for attempt in range(3):
            try:
                made.replace(target)
                break
            except OSError:  # something is there: another process was faster, or it is damaged
                if is_whole(target):
                    break
                try:
                    target.replace(made.with_name(f"{SCRATCH}-damaged-{attempt}"))
                except FileNotFoundError:
                    continue
    return target


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
