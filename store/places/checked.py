"""Reading with the manifest at hand: no byte of a finished capture is used that is not the one that was written."""

from __future__ import annotations

import errno
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnlens.store.places.place import Place

if TYPE_CHECKING:
    from attnlens.store.digests import Digests

PIECE = 1 << 24


@dataclass(frozen=True)
class _Shard:
    """A file of chunks: its bytes, its index (chunk, 2) and what the index was read from, and digests by chunk."""

    size: int
    tail: bytes
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    digests: NDArray[np.uint8]


class Checked(Place):
    """A capture's files. One that is read whole, or has no digests of chunks, is compared with its sha256 when it is
    first read; of the others each chunk is compared whenever it is read.

    Of a large file far away whose chunks have no digests, as in stores written before, only the parts that are asked
    for are fetched, and not compared.
    """

    def __init__(
        self, place: Place, capture: str, hashes: Mapping[str, str], own: tuple[str, ...], digests: Digests | None
    ) -> None:
        """`hashes`: path in the capture → sha256. `own`: how paths of files begin that it does not list. `digests`:
        those of chunks, None if there are none.
        """
        super().__init__(place.name)
        self.blocking, self.whole = place.blocking, place.whole
        self._place = place
        self._prefix = f"{capture}/"
        self._hashes = hashes
        self._own = own
        self._digests = digests
        self._good: set[str] = set()
        self._shards: dict[str, _Shard] = {}

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`. OSError if the bytes are not those that were written."""
        if path in self._good or not path.startswith(self._prefix):
            return self._place.read(path, start, stop)
        inside = path.removeprefix(self._prefix)
        if inside.startswith(self._own) and inside not in self._hashes:
            return self._place.read(path, start, stop)
        wanted = self._hashes.get(inside)
        if wanted is not None and path in self._shards and (start, stop) != (0, None):
            return self._part(path, inside, start, stop)
        try:
            size = self._place.size(path)
        except FileNotFoundError:
            if wanted is None:
                raise
            raise OSError(errno.EIO, "is missing: the manifest lists it", path) from None
        if wanted is None:
            raise OSError(errno.EIO, "is not in the manifest", path)
        small, all_of_it = size <= self.whole, start == 0 and (stop is None or stop >= size)
        if not all_of_it and not small and self._digests is not None and inside.split("/", 1)[0] in self._digests.parts:
            return self._part(path, inside, start, stop)
        if self._place.blocking and not small and not all_of_it:
            return self._place.read(path, start, stop)
        digest, whole = hashlib.sha256(), b""
        step = max(1, size) if all_of_it else PIECE
        for low in range(0, max(1, size), step):
            whole = self._place.read(path, low, min(size, low + step))
            digest.update(whole)
        if digest.hexdigest() != wanted:
            raise OSError(errno.EIO, "its bytes are not those that were written", path)
        self._good.add(path)
        return whole[start:stop] if size <= step else self._place.read(path, start, stop)

    def size(self, path: str) -> int:
        """See `Place.size`."""
        return self._place.size(path)

    def files(self, under: str = "") -> dict[str, int]:
        """See `Place.files`."""
        return self._place.files(under)

    def _part(self, path: str, inside: str, start: int, stop: int | None) -> bytes:
        """Part of a file of chunks; every chunk that has a byte there is read whole and compared."""
        shard = self._shards.get(path)
        if shard is None:
            shard = self._shards[path] = self._open(path, inside)
        size, ends = shard.size, shard.size - len(shard.tail)
        low = max(0, size + start) if start < 0 else min(start, size)
        high = size if stop is None else min(stop, size)
        if low >= high:
            return b""
        if low >= ends:
            return shard.tail[low - ends : high - ends]
        within = min(high, ends)
        touched = np.flatnonzero((shard.starts < within) & (shard.stops > low))
        first = min([low, *shard.starts[touched].tolist()])
        last = max([within, *shard.stops[touched].tolist()])
        data = memoryview(self._place.read(path, first, last))
        reached = low
        for number in touched[np.argsort(shard.starts[touched], kind="stable")].tolist():
            begin, end = int(shard.starts[number]), int(shard.stops[number])
            found = hashlib.sha256(data[begin - first : end - first]).digest()
            if found != shard.digests[number].tobytes():
                raise OSError(errno.EIO, f"its chunk {number} is not the one that was written", path)
            if begin <= reached:
                reached = max(reached, end)
        if reached < within:
            raise OSError(errno.EIO, "its index is not the one that was written", path)
        return bytes(data[low - first : within - first]) + shard.tail[: max(0, high - ends)]

    def _open(self, path: str, inside: str) -> _Shard:
        """The index of a file of chunks. It has a chunk where there is a digest, and none elsewhere."""
        from attnlens.store.digests import ABSENT, DIGESTS, ENTRY_BYTES, place_of, read_index
        from attnlens.store.encode import CRC_BYTES

        assert self._digests is not None
        name, _, key = inside.partition("/")
        count = math.prod(self._digests.parts[name].inside)
        size, length = self._place.size(path), count * ENTRY_BYTES + CRC_BYTES
        tail = self._place.read(path, -length)
        try:
            index = read_index(tail, count)
        except ValueError as error:
            raise OSError(errno.EIO, f"its index is damaged: {error}", path) from None
        try:
            digests = self._digests.shard(name, place_of(key), lambda file: self.read(self._prefix + file))
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(errno.EIO, f"{DIGESTS}, which vouches for it: {reason}", path) from None
        there = index[:, 0] != ABSENT
        bounds: NDArray[Any] = np.where(there[:, None], index, 0)
        outside = (bounds > size).any() or (bounds.sum(axis=1) > size - length).any()
        if outside or (there != digests.any(axis=1)).any():
            raise OSError(errno.EIO, "its index is not the one that was written", path)
        starts = bounds[:, 0].astype(np.int64)
        return _Shard(size, tail, starts, starts + bounds[:, 1].astype(np.int64), digests)
