"""A store as `lens view` serves it: no byte of a finished capture that its manifest does not know, and a tag for each
capture that changes when another one takes its place.

A file is compared when it is first asked for, and again when its size, time or inode changed.
"""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from os import PathLike

from attnlens.render.viewer.wire import Refusal
from attnlens.schemas.errors import AttnlensError, StoreError
from attnlens.store.lists import listed
from attnlens.store.manifest import MANIFEST_ARRAYS, place_hash
from attnlens.store.places import Place, file_version
from attnlens.store.places.checked import Checked
from attnlens.store.places.place import FRONT, GROUP_DOCUMENT, WHOLE, join
from attnlens.store.reader import Capture, open_store

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,9}")
"""How files of a store are called: no `..`, no drive, no dot in front. Links that lead out the place itself refuses."""
CAPTURE = re.compile(r"[0-9]{4,12}")
PIECE = 1 << 20
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG)
"""What a place says of names that are no plain file of the store."""


@dataclass(frozen=True)
class Guard:
    """A capture: its files' hashes, None where it is not finished, where to read from, and what it is known by."""

    place: Place
    hashes: Mapping[str, str] | None
    tag: str | None


@dataclass(frozen=True)
class File:
    """One file: bytes, the tag of its capture (None outside of captures), and what identifies its content."""

    key: str
    size: int
    tag: str | None
    etag: str | None


class Served:
    """One store.

    Raises:
        StoreError: it is none.
    """

    def __init__(self, where: str | PathLike[str], name: str) -> None:
        self.name = name
        self._where = where
        self._store = open_store(where)
        self._local = not self._store.place.blocking
        self._opened = self._version(GROUP_DOCUMENT)
        self._guards: dict[str, tuple[Hashable, Guard]] = {}
        self._good: dict[str, Hashable] = {}
        self._lock = threading.RLock()

    def file(self, key: str) -> File | None:
        """A file, compared with the manifest; None if a store need not have one of that name.

        Raises:
            Refusal: 404 for a file that the manifest lists and that is gone, 500 for one that is not as it was
                written, 502 where the store cannot be reached.
        """
        if not KEY.fullmatch(key):
            return None
        try:
            return self._file(key)
        except OSError as error:
            raise self._trouble(key, error) from None
        except AttnlensError as error:
            raise self._damaged(str(error)) from None

    def tag(self, key: str) -> str | None:
        """The tag of the capture that a file of this name would be of; None outside of captures.

        Raises:
            Refusal: the capture cannot be read.
        """
        try:
            return self._guard(key).tag if KEY.fullmatch(key) else None
        except OSError as error:
            raise self._trouble(key, error) from None
        except AttnlensError as error:
            raise self._damaged(str(error)) from None

    def read(self, file: File, start: int, stop: int) -> Iterator[bytes]:
        """Bytes start … stop - 1 of a file, in pieces. OSError if it changed in the meantime, or cannot be read."""
        place = self._guard(file.key).place
        step = PIECE if self._local else max(1, stop - start)
        for low in range(start, stop, step):
            high = min(stop, low + step)
            try:
                data = place.read(file.key, low, high)
            except AttnlensError as error:
                raise OSError(errno.EIO, str(error), file.key) from None
            if len(data) != high - low or self._etag(file.key, file.size, file.tag) != file.etag:
                raise OSError(errno.ESTALE, "changed while it was read", file.key)
            yield data

    def _file(self, key: str) -> File | None:
        self._reopen()
        guard = self._guard(key)
        inside = key.partition("/")[2]
        try:
            size = guard.place.size(key)
        except OSError as error:
            if error.errno not in NOT_THERE and not isinstance(error, FileNotFoundError):
                raise
            if guard.hashes is None or inside not in guard.hashes:
                return None
            line = f"{self.name}: {key} is missing, the capture's manifest lists it; run `lens verify`"
            raise Refusal(HTTPStatus.NOT_FOUND, line) from None
        if guard.hashes is not None and self._local:
            self._compare(key, inside, guard)
        elif guard.hashes is not None:
            # This compares a small file; of a large one far away parts are compared as they come.
            guard.place.read(key, 0, 0)
        return File(key, size, guard.tag, self._etag(key, size, guard.tag))

    def _compare(self, key: str, inside: str, guard: Guard) -> None:
        """See that a file of a finished capture is the one that the manifest lists, once for each version of it."""
        assert guard.hashes is not None
        own = inside == GROUP_DOCUMENT or inside.startswith(tuple(f"{name}/" for name in MANIFEST_ARRAYS))
        if own and inside not in guard.hashes:
            return  # the digest of the metadata vouches for these, looked at when the capture was opened
        version = (guard.tag, self._version(key))
        if self._good.get(key) == version:
            return
        if inside not in guard.hashes:
            raise self._damaged(f"{self.name}: {key} is not in the capture's manifest; run `lens verify`")
        if place_hash(guard.place, key) != guard.hashes[inside]:
            line = f"{self.name}: {key} is not the file that was written; run `lens verify`, or fetch the store again"
            raise self._damaged(line)
        self._good[key] = version

    def _guard(self, key: str) -> Guard:
        """The capture that a file belongs to, opened again when its metadata changed."""
        name = key.partition("/")[0]
        plain = Guard(self._store.place, None, None)
        for one in listed(self._store.metadata):
            if one.folder == name:
                return Guard(Checked(self._store.place, name, one.files, (), None), one.files, None)
        if not CAPTURE.fullmatch(name) or name == key:
            return plain
        document = join(name, GROUP_DOCUMENT)
        with self._lock:
            version = self._version(document)
            known = self._guards.get(name)
            if known is None or known[0] != version:
                try:
                    self._store.place.size(document)
                except FileNotFoundError:
                    return plain  # it has not begun
                known = self._guards[name] = version, self._opened_guard(name)
            return known[1]

    def _opened_guard(self, name: str) -> Guard:
        capture: Capture = self._store.open(name)
        about = capture.metadata
        if capture.status != "complete":
            return Guard(self._store.place, None, about.created)
        if about.digest is None:
            raise StoreError(f"{self.name}: {name} is complete and has no digest; run `lens verify`")
        checked = capture.checked_place  # compares the metadata with their digest
        fronts = {} if about.front is None else {FRONT: about.front}  # what the manifest does not list
        return Guard(self._store.place if self._local else checked, capture.manifest() | fronts, about.digest)

    def _reopen(self) -> None:
        """Open a packed store again when another file has its name; a folder is looked at file by file."""
        with self._lock:
            version = self._version(GROUP_DOCUMENT)
            if version != self._opened:
                self._store = open_store(self._where)
                self._opened = version
                self._guards.clear()
                self._good.clear()

    def _version(self, key: str) -> Hashable:
        """What changes with a file of this machine; None if it is not there."""
        try:
            return file_version(self._where, key)
        except OSError:
            return None

    def _etag(self, key: str, size: int, tag: str | None) -> str | None:
        """An entity tag: of a finished capture it follows from its digest, else from the file."""
        if tag is None and not self._local:
            if size > WHOLE:
                return None
            what: Hashable = hashlib.sha256(self._store.place.read(key)).hexdigest()
        else:
            what = self._version(key)
        return f'"{hashlib.sha256(repr((key, size, tag, what)).encode()).hexdigest()[:32]}"'

    def _trouble(self, key: str, error: OSError) -> Refusal:
        why = error.strerror or str(error)
        if self._local or (error.errno == errno.EIO and "not those that were written" in why):
            return self._damaged(f"{self.name}: {key} cannot be read ({why}); run `lens verify`")
        return Refusal(HTTPStatus.BAD_GATEWAY, f"{self.name}: its server cannot be reached, or does not answer ({why})")

    def _damaged(self, line: str) -> Refusal:
        return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, line)
