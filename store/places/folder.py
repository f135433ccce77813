"""A store in a folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from attnlens.store.places.place import Place, join


class Folder(Place):
    """A folder. Links that lead out of it, and what is no plain file, are refused."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._real = os.path.realpath(path)
        self._inside: dict[str, bool] = {"": True}

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        number = self._open(path)
        try:
            size = os.fstat(number).st_size
            low = max(0, size + start) if start < 0 else start
            high = size if stop is None else min(stop, size)
            parts = []
            while low < high:  # one call gives no more than 2 GiB
                data = os.pread(number, high - low, low)
                if not data:
                    break
                parts.append(data)
                low += len(data)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(number)

    def size(self, path: str) -> int:
        """See `Place.size`."""
        return self._stat(path).st_size

    def files(self, under: str = "") -> dict[str, int]:
        """See `Place.files`. Links to folders are not followed."""
        found = {}
        for parent, _, names in os.walk(os.path.join(self._real, under)):  # noqa: PTH118
            folder = os.path.relpath(parent, self._real).replace(os.sep, "/")
            for name in names:
                path = join("" if folder == "." else folder, name)
                try:
                    found[path] = self._stat(path).st_size
                except OSError:
                    found[path] = 0
        return dict(sorted(found.items()))

    def folders(self, under: str = "") -> list[str]:
        """See `Place.folders`; empty ones too."""
        if not self._is_inside(under):
            raise _outside(under)
        with os.scandir(f"{self._real}/{under}") as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def _stat(self, path: str) -> os.stat_result:
        number = self._open(path)
        try:
            return os.fstat(number)
        finally:
            os.close(number)

    def _open(self, path: str) -> int:
        """A descriptor of a plain file inside the folder."""
        full = f"{self._real}/{path}"
        if not self._is_inside(path.rpartition("/")[0]):
            raise _outside(full)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # the last for a pipe, which would wait for ever
        try:
            number = os.open(full, flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            if not self._holds(os.path.realpath(full)):
                raise _outside(full) from None
            number = os.open(full, flags)
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            os.close(number)
            kind = FileNotFoundError(errno.ENOENT, "is a folder", full) if stat.S_ISDIR(mode) else None
            raise kind or OSError(errno.EINVAL, "is no plain file", full)
        return number

    def _is_inside(self, folder: str) -> bool:
        known = self._inside.get(folder)
        if known is None:
            known = ".." not in folder.split("/") and self._holds(os.path.realpath(f"{self._real}/{folder}"))
            self._inside[folder] = known
        return known

    def _holds(self, real: str) -> bool:
        return real == self._real or real.startswith(self._real.rstrip("/") + "/")


def _outside(path: str) -> OSError:
    return OSError(errno.ELOOP, "is a link that leads out of the store", path)
