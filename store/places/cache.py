"""Parts of files far away that were fetched before, kept in memory, and on disk where their content has a name.

The name of a zip is made of its last bytes, which are fetched anew whenever it is opened, and of its entity tag, if
that is a strong one; else of its table of contents, which has a checksum of every file. A weak tag, a time and a size
may be those of another file.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

MEMORY = 1 << 28
"""Bytes that are kept in memory of one file."""
DISK = 1 << 30
"""Bytes that are kept on disk; the oldest go first."""


class Parts:
    """Parts of one file, by where they begin; what overlaps is fetched once."""

    def __init__(self, fetch: Callable[[int, int], bytes], identity: str | None) -> None:
        """`identity` names the content for ever; None keeps nothing on disk."""
        self._fetch, self._identity = fetch, identity
        self._starts: list[int] = []
        self._parts: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def identify(self, identity: str) -> None:
        """What names the content for ever, where that was not known from the beginning."""
        self._identity = identity

    def put(self, start: int, data: bytes) -> None:
        """Keep a part in memory."""
        with self._lock:
            if sum(map(len, self._parts.values())) + len(data) > MEMORY:
                self._parts.clear()
                self._starts.clear()
            if len(self._parts.get(start, b"")) < len(data):
                if start not in self._parts:
                    bisect.insort(self._starts, start)
                self._parts[start] = data

    def get(self, start: int, stop: int) -> bytes:
        """Bytes start … stop - 1."""
        found = self._known(start, stop)
        if found is None:
            found = self._load(start, stop)
            if found is None:
                found = self._fetch(start, stop)
                self._save(start, stop, found)
            self.put(start, found)
        return found

    def _known(self, start: int, stop: int) -> bytes | None:
        with self._lock:
            for at in reversed(self._starts[: bisect.bisect_right(self._starts, start)]):
                part = self._parts[at]
                if at + len(part) >= stop:
                    return part[start - at : stop - at]
        return None

    def _file(self, start: int, stop: int) -> Path | None:
        folder = cache_folder()
        if folder is None or self._identity is None:
            return None
        name = hashlib.sha256(f"{self._identity}\0{start}\0{stop}".encode()).hexdigest()
        return folder / name[:2] / name

    def _load(self, start: int, stop: int) -> bytes | None:
        file = self._file(start, stop)
        if file is None:
            return None
        try:
            data = file.read_bytes()
        except OSError:
            return None
        body, digest = data[:-32], data[-32:]
        if len(body) != stop - start or hashlib.sha256(body).digest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(file)
        return body

    def _save(self, start: int, stop: int, data: bytes) -> None:
        file = self._file(start, stop)
        if file is None:
            return
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
            temporary.write_bytes(data + hashlib.sha256(data).digest())
            temporary.replace(file)
            _tidy(file.parent.parent)


def cache_folder() -> Path | None:
    """Where parts are kept on disk: `$ATTNLENS_CACHE`, which may be empty for nowhere, or the user's cache."""
    named = os.environ.get("ATTNLENS_CACHE")
    if named is not None:
        return Path(named) / "remote" if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnlens" / "remote"


_tidied = [0.0]


def _tidy(folder: Path) -> None:
    """Delete what was not used for longest when the cache is too large; looked at once a minute."""
    if time.monotonic() - _tidied[0] < 60 and _tidied[0]:
        return
    _tidied[0] = time.monotonic()
    files = sorted((about.st_mtime, about.st_size, file) for file in folder.glob("*/*") if (about := file.stat()))
    size = sum(length for _, length, _ in files)
    for _, length, file in files:
        if size <= DISK:
            break
        file.unlink(missing_ok=True)
        size -= length
