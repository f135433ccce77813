"""The front of a capture: one file with copies of its lists and of the ends of its large files.

Far away every file costs a request of its own, and a capture has a dozen small ones that any picture needs. The front
is made last, of files that are there, and the capture's zarr.json has its hash, so that of another is never taken.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.store.descriptions import WIDE, describe_array
from attnlens.store.files import PARTIAL, read_document, walk, write_atomic
from attnlens.store.places.place import FRONT, WHOLE

LISTS_BYTES = 9 << 13
"""The most that copies of lists take, the shortest first; of a longer list there is none."""
ENDS_BYTES = 3 << 13
"""The most that copies of the ends of sharded files take, where their index is."""
FRONT_BYTES = 1 << 20
"""The largest front that is read; ours has at most WHOLE bytes, so that it comes in one piece."""
LARGEST = 1 << 53
"""No file is said to be as large as this."""
ENTRY_COST = 32
"""About what a file takes in the front's table of contents, beside its path."""


@dataclass(frozen=True)
class End:
    """How a file ends: its size, and its last bytes, or all of them."""

    size: int
    data: bytes


def write_front(folder: Path) -> str:
    """Write the front of a capture whose files are all there, but its zarr.json. Returns the sha256 of the front."""
    data = encode(dict(_ends(folder)))
    write_atomic(folder / FRONT, data)
    return hashlib.sha256(data).hexdigest()


def encode(ends: Mapping[str, End]) -> bytes:
    """A front: a line of JSON, [path, size, length] of each file by path, then so many last bytes of each."""
    files = sorted(ends.items())
    head = json.dumps([[path, end.size, len(end.data)] for path, end in files], ensure_ascii=True)
    return b"".join([head.encode(), b"\n", *(end.data for _, end in files)])


def decode(data: bytes) -> dict[str, End]:
    """The ends of files that a front holds, by path in the capture.

    Raises:
        ValueError: it is not a front, or larger than one may be.
    """
    if len(data) > FRONT_BYTES:
        raise ValueError(f"has {len(data)} bytes, more than {FRONT_BYTES}")
    head, _, rest = data.partition(b"\n")
    try:
        listed = json.loads(head)
    except RecursionError:
        raise ValueError("its lists lie too deep in one another") from None
    found: dict[str, End] = {}
    at = 0
    for item in listed if isinstance(listed, list) else [listed]:
        match item:
            case [str() as path, int() as size, int() as length] if 0 <= length <= size < LARGEST and path not in found:
                found[path] = End(size, rest[at : at + length])
                at += length
            case _:
                raise ValueError(f"its table of contents holds {str(item)[:200]!r}")
    if encode(found) != data:
        raise ValueError("its bytes are not those that its table of contents tells of")
    return found


def index_bytes(document: Mapping[str, Any]) -> int:
    """Bytes of the index at the end of each file of an array, by its zarr.json; 0 if it has none.

    Raises:
        ValueError: it is not the zarr.json of an array that can be read.
    """
    from attnlens.store.encode import CRC_BYTES
    from attnlens.store.shards import ENTRY_BYTES

    about = describe_array(document, WIDE)
    if about.shard is None:
        return 0
    return ENTRY_BYTES * math.prod(s // c for s, c in zip(about.shard, about.chunk, strict=True)) + CRC_BYTES


def _ends(folder: Path) -> Iterator[tuple[str, End]]:
    """What the front of a capture holds: all lists that are short, and indices of files that are fetched in parts."""
    lists: list[tuple[int, str]] = []
    indexed: dict[str, list[str]] = {}
    lengths: dict[str, int] = {}
    for path, file in walk(folder):
        array, chunk, _ = path.partition("/c/")
        if not chunk or path.endswith(PARTIAL):
            continue
        if array not in lengths:
            try:
                lengths[array] = index_bytes(read_document(folder / array))
            except (OSError, ValueError):
                lengths[array] = -1  # no array that can be read
        size = file.stat().st_size
        if lengths[array] == 0:
            lists.append((size, path))
        elif lengths[array] > 0 and size > WHOLE:
            indexed.setdefault(array, []).append(path)
    room = LISTS_BYTES
    for size, path in sorted(lists):
        room -= size + len(path) + ENTRY_COST
        if room < 0:
            break
        yield path, End(size, (folder / path).read_bytes())
    room = ENDS_BYTES
    for array in sorted(indexed, key=lambda name: (lengths[name] * len(indexed[name]), name)):
        for path in sorted(indexed[array], key=_place):
            room -= lengths[array] + len(path) + ENTRY_COST
            if room < 0:
                return
            yield path, _end(folder / path, lengths[array])


def _place(path: str) -> list[int]:
    """Where a file lies in its array, so that the first ones come first."""
    return [int(part) for part in path.partition("/c/")[2].split("/")]


def _end(file: Path, length: int) -> End:
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - length))
        return End(size, opened.read())
