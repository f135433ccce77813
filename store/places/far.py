"""Stores behind a URL: a zip of which parts are fetched, or a folder of files."""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from functools import partial

from attnlens.schemas.errors import StoreError
from attnlens.store.places.archive import Archive
from attnlens.store.places.cache import Parts
from attnlens.store.places.fetch import Remote
from attnlens.store.places.place import GROUP_DOCUMENT, WHOLE, Place

TAIL = 1 << 17
"""Bytes at the end of a packed store that are fetched first: its table of contents and what a reader needs at once."""


class FarArchive(Archive):
    """A `.zarr.zip` behind a URL. Raises StoreError as `Archive` does, and where it cannot be had."""

    blocking = True
    whole = WHOLE

    def __init__(self, url: str) -> None:
        remote = Remote(url)
        try:
            tail, size, tag = remote.tail("", TAIL)
        except FileNotFoundError:
            raise StoreError(f"{url}: no such store") from None
        except OSError as error:
            raise StoreError(f"{url} cannot be read ({error.strerror or error})") from None
        identity = f"{url}\0{size}\0{hashlib.sha256(tail).hexdigest()}\0{tag}"
        self._parts = Parts(lambda start, stop: remote.part("", start, stop), identity if tag else None)
        self._parts.put(size - len(tail), tail)
        super().__init__(url, self._parts.get, size)
        if tag == "":  # then the table of contents, fetched just now, names the content by the checksums of all files
            self._parts.identify(f"{identity}\0{hashlib.sha256(repr(self._entries).encode()).hexdigest()}")

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`. A small file comes whole."""
        entry = self._entry(path)
        if entry.size <= WHOLE and (start or stop is not None):
            return super().read(path)[start:stop]
        return super().read(path, start, stop)


class FarFolder(Place):
    """A folder behind a URL. What is in it is known from the captures' manifests, or by listing where that is possible.

    Raises:
        StoreError: nothing is there.
    """

    blocking = True
    apart = True
    whole = WHOLE

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._remote = Remote(url)
        self._files: dict[str, Parts] = {}
        self._sizes: dict[str, int] = {}
        self._told: dict[tuple[str, int], Parts] = {}
        self._missing: set[str] = set()
        self._lock = threading.Lock()
        try:
            self.read(GROUP_DOCUMENT)
        except FileNotFoundError:
            raise StoreError(f"{url} is not a store: it has no zarr.json") from None
        except OSError as error:
            raise StoreError(f"{url} cannot be read ({error.strerror or error})") from None

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        size = self.size(path)
        low = max(0, size + start) if start < 0 else min(start, size)
        high = size if stop is None else min(stop, size)
        if path.endswith(GROUP_DOCUMENT):
            return self._files[path].get(0, size)[low:high]
        return _cut(self._files[path], low, high, size)

    def part(self, path: str, start: int, stop: int, size: int) -> bytes:
        """See `Place.part`. The size is not asked for, and not taken for the file's own by anyone else."""
        with self._lock:
            known = self._files.get(path) if self._sizes.get(path) == size else None
            if known is None:
                fetch = partial(self._remote.part, path)
                known = self._told.setdefault((path, size), Parts(fetch, None))
        return _cut(known, start, min(stop, size), size)

    def size(self, path: str) -> int:
        """See `Place.size`. Asking for it fetches the end of the file as well, or all of a document."""
        with self._lock:
            if path in self._missing:
                raise FileNotFoundError(errno.ENOENT, "is not there", path)
            if path in self._sizes:
                return self._sizes[path]
        try:
            if path.endswith(GROUP_DOCUMENT):
                data = self._remote.whole(path)
                size = len(data)
            else:
                data, size, _ = self._remote.tail(path, WHOLE)
        except FileNotFoundError:
            self._missing.add(path)
            raise
        parts = Parts(partial(self._remote.part, path), None)
        parts.put(size - len(data), data)
        with self._lock:
            self._files[path], self._sizes[path] = parts, size
        return size

    def files(self, under: str = "") -> dict[str, int]:
        """See `Place.files`.

        Raises:
            StoreError: the server cannot list files.
        """
        try:
            return dict(sorted(self._remote.names(under).items()))
        except Exception:  # noqa: BLE001 - whatever a client says that has no listing
            raise StoreError(
                f"{self.name}: this server cannot list files, so a folder there can be drawn, but not checked or "
                "copied: pack the store, or download it"
            ) from None


def _cut(parts: Parts, start: int, stop: int, size: int) -> bytes:
    """Bytes start … stop - 1 of a file in a folder, which is fetched whole if it is small."""
    if size <= WHOLE:
        return parts.get(0, size)[start:stop]
    return parts.get(start, stop) if start < stop else b""


FRESH = 60.0
"""Seconds for which a place that was opened is used again, so that one command does not ask twice."""
_opened: dict[str, tuple[float, Place]] = {}


def far_place(url: str) -> Place:
    """The place that a URL names: a zip if it ends so."""
    url = url.rstrip("/")
    now = time.monotonic()
    for name in [name for name, (at, _) in _opened.items() if now - at > FRESH]:
        _opened.pop(name, None)
    if url not in _opened:
        _opened[url] = now, FarArchive(url) if url.lower().endswith(".zip") else FarFolder(url)
    return _opened[url][1]
