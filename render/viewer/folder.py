"""Bytes of a store's files for the page, and nothing beside them."""

from __future__ import annotations

import re
from pathlib import Path

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,9}")
"""How files of a store are called: no `..`, no drive, no dot in front."""


class Folder:
    """A store that is a folder. Links that lead out of it are not followed."""

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()

    def find(self, key: str) -> Path | None:
        """The file that `key` names; None where there is none inside the store."""
        if not KEY.fullmatch(key):
            return None
        path = (self.root / key).resolve()
        return path if path.is_relative_to(self.root) and path.is_file() else None

    def size(self, key: str) -> int | None:
        """Bytes of a file, None where there is none."""
        path = self.find(key)
        return None if path is None else path.stat().st_size

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Bytes start … stop-1 of a file that is there."""
        path = self.find(key)
        if path is None:
            return b""
        with path.open("rb") as file:
            file.seek(start)
            return file.read(max(0, stop - start))
