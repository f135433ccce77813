"""A store in one zip file whose entries are not compressed, so that any part of any entry is read where it lies."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from attnlens.schemas.errors import StoreError
from attnlens.store.places.place import GROUP_DOCUMENT, Place

DIRECTORY_BYTES = 1 << 24
"""The largest table of contents that is read; of the smallest entries it would have 300 000."""

END = struct.Struct("<4s4H2LH")
END_SIGNATURE = b"PK\x05\x06"
END_64 = struct.Struct("<4sQ2H2L4Q")
END_64_SIGNATURE = b"PK\x06\x06"
LOCATOR_64 = struct.Struct("<4sLQL")
LOCAL = struct.Struct("<4s5H3L2H")
LOCAL_SIGNATURE = b"PK\x03\x04"
COMMENT_BYTES = (1 << 16) - 1
TAILS = ".attnlens-tails"
"""An entry that is no file of the store: copies of the ends of its sharded files, which hold the places of chunks."""
COMMENT = b"attnlens structure sha256 "
"""What the comment of a packed store begins with; the hash of the zip's structure follows, see `skeleton`."""


@dataclass(frozen=True)
class Entry:
    """One file in the archive: where its header is, its size, and its crc32."""

    header: int
    size: int
    crc: int


class Archive(Place):
    """A `.zarr.zip`. Several processes, and threads, may read it at once.

    The store may be at the top of the archive, or in the one folder there.

    Raises:
        StoreError: it is no zip, has compressed entries, or entries that no store would have.
    """

    def __init__(self, name: str, part: Callable[[int, int], bytes], size: int) -> None:
        """`part` gives bytes start … stop - 1 of the zip, which has `size`."""
        super().__init__(name)
        self._part, self._size = part, size
        self._start: dict[str, int] = {}
        entries = entries_of(_File(part, size), size, name)
        self._tails = _tails(entries.pop(TAILS, None), self._bytes)
        self._entries = entries
        self._packed_here = _comment(self._bytes(max(0, size - 1024), 1024)).startswith(COMMENT)

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        entry = self._entry(path)
        if start < 0 and stop is None and len(tail := self._tails.get(path, b"")) == -start:
            return tail
        low = max(0, entry.size + start) if start < 0 else min(start, entry.size)
        high = entry.size if stop is None else min(stop, entry.size)
        begin = self._begin(path, entry)
        data = self._bytes(begin + low, max(0, high - low))
        if len(data) < high - low:
            raise OSError(errno.EIO, "the archive ends inside it", path)
        return data

    def size(self, path: str) -> int:
        """See `Place.size`."""
        return self._entry(path).size

    def checksum(self, path: str) -> int | None:
        """See `Place.checksum`."""
        return self._entry(path).crc

    def files(self, under: str = "") -> dict[str, int]:
        """See `Place.files`."""
        prefix = f"{under}/" if under else ""
        return {path: entry.size for path, entry in self._entries.items() if path.startswith(prefix)}

    def structure_problem(self) -> str | None:
        """What is wrong with the zip itself: headers, table of contents, bytes that belong to nothing; None if nothing.

        Only a zip that `lens pack` made can be vouched for; of any other nothing is said.
        """
        size = self._size
        tail = self._bytes(max(0, size - END.size - COMMENT_BYTES), END.size + COMMENT_BYTES)
        at = tail.rfind(END_SIGNATURE)
        comment = tail[at + END.size :]
        if not comment:
            return None
        try:
            contents = [(self._begin(path, entry), entry.size) for path, entry in self._entries.items()]
            for path, tail_of in self._tails.items():
                if self.read(path, max(0, self._entry(path).size - len(tail_of))) != tail_of:
                    return f"the copy of the end of {path} is not what it was"
        except OSError as error:
            return f"the zip is damaged at {error.filename}: {error.strerror}"
        found = skeleton(lambda start, count: self._bytes(start, count), size - len(comment) - 2, contents)
        stated = len(comment) == int.from_bytes(tail[at + END.size - 2 : at + END.size], "little")
        if stated and comment == COMMENT + found.encode():
            return None
        return "the zip's headers or table of contents were changed after it was packed"

    def _entry(self, path: str) -> Entry:
        try:
            return self._entries[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "is not in the archive", path) from None

    def _begin(self, path: str, entry: Entry) -> int:
        """Where the bytes of an entry begin: after its header, whose length only the header knows."""
        begin = self._start.get(path)
        if begin is None and self.blocking and self._packed_here:
            return entry.header + LOCAL.size + len(path.encode())  # as `lens pack` writes them; saves a read
        if begin is None:
            begin = self._start[path] = entry.header + header_length(self._bytes(entry.header, LOCAL.size), path)
        return begin

    def _bytes(self, start: int, count: int) -> bytes:
        stop = min(start + count, self._size)
        return self._part(start, stop) if start < stop else b""


class LocalArchive(Archive):
    """A `.zarr.zip` on this machine."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        super().__init__(str(path), self._pread, os.fstat(self._number).st_size)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def _pread(self, start: int, stop: int) -> bytes:
        parts = []
        while start < stop:  # one call gives no more than 2 GiB
            data = os.pread(self._number, stop - start, start)
            if not data:
                break
            parts.append(data)
            start += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _File(io.RawIOBase):
    """A file for `zipfile`, made of parts."""

    def __init__(self, part: Callable[[int, int], bytes], size: int) -> None:
        self._part, self._size, self._at = part, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        data = self._part(self._at, stop) if self._at < stop else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _comment(tail: bytes) -> bytes:
    at = tail.rfind(END_SIGNATURE)
    return tail[at + END.size :] if at >= 0 else b""


def tails_entry(tails: Mapping[str, bytes]) -> bytes:
    """The content of the entry TAILS: a line of JSON with paths and lengths, then the bytes."""
    head = json.dumps([[path, len(data)] for path, data in tails.items()], ensure_ascii=True)
    return head.encode() + b"\n" + b"".join(tails.values())


def _tails(entry: Entry | None, read: Callable[[int, int], bytes]) -> dict[str, bytes]:
    """The ends of files that the zip has a copy of; none if that cannot be made out."""
    if entry is None or entry.size > DIRECTORY_BYTES:
        return {}
    begin = entry.header + LOCAL.size + len(TAILS)
    head, _, data = read(begin, entry.size).partition(b"\n")
    try:
        listed = [(str(path), int(length)) for path, length in json.loads(head)]
    except (ValueError, TypeError, RecursionError):
        return {}
    found, at = {}, 0
    for path, length in listed:
        if length < 1 or at + length > len(data):
            return {}
        found[path] = data[at : at + length]
        at += length
    return found


def is_archive(path: Path) -> bool:
    """Whether a file begins, or ends, as a zip does."""
    try:
        with path.open("rb") as file:
            if file.read(4) == LOCAL_SIGNATURE:
                return True
            file.seek(max(0, path.stat().st_size - END.size - COMMENT_BYTES))
            return END_SIGNATURE in file.read()
    except OSError:
        return False


def entries_of(file: BinaryIO | io.RawIOBase, size: int, name: str, *, below_top: bool = True) -> dict[str, Entry]:
    """The table of contents of a zip of `size` bytes, by path inside the store, sorted.

    Raises:
        StoreError: see `Archive`.
    """
    _check_directory(file, size, name)
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise StoreError(f"{name}: the zip is damaged ({error})") from None
    found: dict[str, Entry] = {}
    for item in listed:
        path = item.orig_filename  # may be empty, which `item.is_dir` cannot take
        if path.endswith("/"):
            continue
        if problem := _problem(item, path, found):
            raise StoreError(f"{name}: entry {path[:200]!r} {problem}")
        if item.header_offset + LOCAL.size + item.file_size > size:
            raise StoreError(f"{name}: entry {path[:200]!r} reaches beyond the end of the zip: it was cut short")
        found[path] = Entry(item.header_offset, item.file_size, item.CRC)
    return dict(sorted((_below_top(found) if below_top else found).items()))


def skeleton(read: Callable[[int, int], bytes], size: int, entries: Iterable[tuple[int, int]]) -> str:
    """Sha256, in hex, of all bytes of a zip that belong to no entry's content, its comment left out.

    Args:
        read: Bytes of the zip from an offset on, so many.
        size: Length of the zip without its comment, the two bytes of the comment's length left out as well.
        entries: Where each content begins, and its length.
    """
    digest, at = hashlib.sha256(), 0
    for begin, length in [*sorted(entries), (size, 0)]:
        digest.update(read(at, max(0, begin - at)))
        at = begin + length
    return digest.hexdigest()


def header_length(header: bytes, path: str) -> int:
    """Bytes of the header in front of an entry.

    Raises:
        OSError: it is none.
    """
    if len(header) < LOCAL.size or not header.startswith(LOCAL_SIGNATURE):
        raise OSError(errno.EIO, "the archive has no entry where it says", path)
    *_, names, extra = LOCAL.unpack(header)
    return int(LOCAL.size + names + extra)


def _problem(item: zipfile.ZipInfo, path: str, found: dict[str, Entry]) -> str | None:
    """Why an entry cannot be one of a store."""
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or "\0" in path or ":" in parts[0] or {"", ".", ".."} & set(parts):
        return "has a name that could lead out of the store"
    if path in found:
        return "is there twice"
    if item.flag_bits & 1:
        return "is encrypted"
    if item.compress_type != zipfile.ZIP_STORED or item.compress_size != item.file_size:
        return "is compressed: a store is read in place; unzip it, then `lens pack` it"
    if (item.external_attr >> 16) & 0o170000 == 0o120000:
        return "is a link"
    return None


def _below_top(found: dict[str, Entry]) -> dict[str, Entry]:
    """Entries below the one folder that all are in, if that is where the store is."""
    if GROUP_DOCUMENT in found:
        return found
    tops = {path.partition("/")[0] for path in found}
    top = next(iter(tops)) if len(tops) == 1 else ""
    if f"{top}/{GROUP_DOCUMENT}" not in found:
        return found
    return {path[len(top) + 1 :]: entry for path, entry in found.items()}


def _check_directory(file: BinaryIO | io.RawIOBase, size: int, name: str) -> None:
    """Refuse a table of contents that would take more memory than any store's."""
    file.seek(max(0, size - END.size - COMMENT_BYTES))
    tail = file.read() or b""
    at = tail.rfind(END_SIGNATURE)
    if at < 0 or len(tail) - at < END.size:
        raise StoreError(f"{name}: the zip has no table of contents: it was cut short, or is no zip")
    *_, length, _, comment = END.unpack_from(tail, at)
    if at + END.size + comment != len(tail):
        raise StoreError(f"{name}: the zip does not end where it says: it was cut short, or something was added")
    if length == 0xFFFFFFFF and at >= LOCATOR_64.size:
        offset = LOCATOR_64.unpack_from(tail, at - LOCATOR_64.size)[2]
        file.seek(min(offset, size))
        end = file.read(END_64.size) or b""
        length = END_64.unpack(end)[8] if len(end) == END_64.size and end.startswith(END_64_SIGNATURE) else 0
    if length > DIRECTORY_BYTES:
        raise StoreError(f"{name}: the zip's table of contents has {length} bytes, more than {DIRECTORY_BYTES}")
