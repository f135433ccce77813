"""Reading with the manifest at hand: no byte of a finished capture is used that is not the one that was written."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping

from attnlens.store.places.place import Place

PIECE = 1 << 24


class Checked(Place):
    """A capture's files, each compared with its sha256 when it is first read.

    Of a large file far away only the parts that are asked for are fetched, so it is not compared. A chunk has a
    checksum of its own, but two chunks that changed places still have theirs.
    """

    def __init__(self, place: Place, capture: str, hashes: Mapping[str, str], own: tuple[str, ...]) -> None:
        """`hashes`: path in the capture → sha256. `own`: how paths of files begin that it does not list."""
        super().__init__(place.name)
        self.blocking, self.whole = place.blocking, place.whole
        self._place = place
        self._prefix = f"{capture}/"
        self._hashes = hashes
        self._own = own
        self._good: set[str] = set()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`. OSError if the file is not the one that the manifest lists."""
        if path in self._good or not path.startswith(self._prefix):
            return self._place.read(path, start, stop)
        inside = path.removeprefix(self._prefix)
        if inside.startswith(self._own) and inside not in self._hashes:
            return self._place.read(path, start, stop)
        wanted = self._hashes.get(inside)
        try:
            size = self._place.size(path)
        except FileNotFoundError:
            if wanted is None:
                raise
            raise OSError(errno.EIO, "is missing: the manifest lists it", path) from None
        if wanted is None:
            raise OSError(errno.EIO, "is not in the manifest", path)
        if self._place.blocking and size > self.whole:
            return self._place.read(path, start, stop)
        digest, whole = hashlib.sha256(), b""
        for low in range(0, max(1, size), PIECE):
            whole = self._place.read(path, low, min(size, low + PIECE))
            digest.update(whole)
        if digest.hexdigest() != wanted:
            raise OSError(errno.EIO, "its bytes are not those that were written", path)
        self._good.add(path)
        return whole[start:stop] if size <= PIECE else self._place.read(path, start, stop)

    def size(self, path: str) -> int:
        """See `Place.size`."""
        return self._place.size(path)

    def files(self, under: str = "") -> dict[str, int]:
        """See `Place.files`."""
        return self._place.files(under)
