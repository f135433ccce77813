"""Sha256 of single chunks, in one array of a capture: who reads a part of a large file compares that part alone.

A digest belongs to a place in an array, so an index that leads to another chunk is noticed as well as changed bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from attnlens.schemas.validate import ArrayDescription
from attnlens.store.descriptions import WIDE, describe_array, ours
from attnlens.store.encode import CRC_BYTES
from attnlens.store.files import PARTIAL, read_document, walk
from attnlens.store.frames import check_size
from attnlens.store.places.place import WHOLE

DIGESTS = "chunk_sha256"
DIGEST_BYTES = 32
PER_FILE = 2048
"""Digests of one file of the array: 64 KiB, which hold those of a row of a large model."""
ROWS = ("query", "generated", "token", "key")
"""Axes along which rows are read: digests of one row lie together. The first that an array has counts."""
ENTRY_BYTES = 16
ABSENT = (1 << 64) - 1
THREADS = 4
KEPT_FILES = 16

_zstd = Zstd()
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """The digests of one array: the number of the first, and how the others follow.

    `grid`: places for chunks along each axis, `inside`: those of one shard, `order`: axes, the slowest first.
    """

    first: int
    grid: tuple[int, ...]
    inside: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many digests there are."""
        return math.prod(self.grid)

    def numbers(self, shard: tuple[int, ...]) -> NDArray[np.int64]:
        """Numbers of the digests of a shard's chunks, in the order of its index."""
        strides, step = [0] * len(self.grid), 1
        for axis in reversed(self.order):
            strides[axis], step = step, step * self.grid[axis]
        found: NDArray[np.int64] = np.full((1,), self.first, np.int64)
        for at, count, stride in zip(shard, self.inside, strides, strict=True):
            found = np.add.outer(found, (at * count + np.arange(count)) * stride)
        return found.reshape(-1)


@dataclass(frozen=True)
class Hashed:
    """What hashing the chunks of one array gave: `part`, whose first is 0, the digests, and the sha256 of its files."""

    part: Part
    digests: Bytes
    files: Mapping[str, str]


def part_of(about: ArrayDescription, first: int = 0) -> Part:
    """How the digests of a sharded array follow each other, as attnlens writes them."""
    assert about.shard is not None
    inside = tuple(shard // chunk for shard, chunk in zip(about.shard, about.chunk, strict=True))
    grid = tuple(-(-size // shard) * count for size, shard, count in zip(about.shape, about.shard, inside, strict=True))
    row = next((about.axes.index(axis) for axis in ROWS if axis in about.axes), 0)
    return Part(first, grid, inside, (row, *(axis for axis in range(len(grid)) if axis != row)))


def read_index(tail: bytes, count: int) -> NDArray[np.uint64]:
    """Offset and length of each chunk of a shard, by the bytes at its end; both are ABSENT of one that is not there.

    Raises:
        ValueError: there are too few bytes, or their checksum differs.
    """
    if len(tail) != count * ENTRY_BYTES + CRC_BYTES:
        raise ValueError("the shard is shorter than its index")
    return np.frombuffer(uncrc(tail), "<u8").reshape(count, 2)


def uncrc(data: bytes) -> bytes:
    """What stands before a crc32c.

    Raises:
        ValueError: the crc32c is of something else.
    """
    body = data[:-CRC_BYTES]
    if int(google_crc32c.value(body)).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
        raise ValueError("its checksum differs")
    return body


def hash_arrays(folder: Path) -> dict[str, Hashed]:
    """Digests of the chunks of those arrays of a capture of which a file is too large to be read whole for a part."""
    found = {}
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != DIGESTS):
        if not any(file.stat().st_size > WHOLE for _, file in walk(folder / name)):
            continue
        try:
            about = describe_array(read_document(folder / name), WIDE)
        except (OSError, ValueError):
            continue  # no array of ours: its files are in the manifest
        if about.shard is not None:
            found[name] = _hash_array(folder, name, part_of(about))
    return found


def _hash_array(folder: Path, name: str, part: Part) -> Hashed:
    digests = np.zeros((part.count, DIGEST_BYTES), np.uint8)
    files = [path for path, _ in walk(folder / name) if path.startswith("c/") and not path.endswith(PARTIAL)]

    def one(path: str) -> str:
        data = (folder / name / path).read_bytes()
        digests[part.numbers(place_of(path))] = hash_shard(data, math.prod(part.inside))
        return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(THREADS, "attnlens-hash") as pool:
        hashes = list(pool.map(one, files))
    return Hashed(part, digests, {f"{name}/{path}": digest for path, digest in zip(files, hashes, strict=True)})


def hash_shard(data: bytes, count: int) -> Bytes:
    """Digests of a shard's chunks, zeros where there is none.

    Raises:
        ValueError: its index is damaged.
    """
    digests = np.zeros((count, DIGEST_BYTES), np.uint8)
    view = memoryview(data)
    for number, (start, size) in enumerate(read_index(data[-(count * ENTRY_BYTES + CRC_BYTES) :], count).tolist()):
        if start != ABSENT:
            digests[number] = np.frombuffer(hashlib.sha256(view[start : start + size]).digest(), np.uint8)
    return digests


def place_of(path: str) -> tuple[int, ...]:
    """Where a file lies in its array, by its path in it: "c/0/3" is (0, 3)."""
    return tuple(int(part) for part in path.split("/")[1:])


def table_of(hashed: Mapping[str, Hashed]) -> tuple[Bytes, dict[str, Any]]:
    """All digests (chunk, digest_byte), and what the array's attribute `arrays` says of them."""
    about: dict[str, Any] = {}
    first = 0
    for name, one in sorted(hashed.items()):
        about[name] = {"first": first, "grid": list(one.part.grid), "order": list(one.part.order)}
        first += one.part.count
    return np.concatenate([one.digests for _, one in sorted(hashed.items())]), about


class Digests:
    """The digests of a finished capture, read file by file."""

    def __init__(self, document: Mapping[str, Any], arrays: Mapping[str, ArrayDescription]) -> None:
        """`document`: zarr.json of the array. `arrays`: what others say of themselves, by name.

        Raises:
            ValueError: the array is not as the format says.
        """
        about = describe_array(document, WIDE)
        codecs = [codec.get("name") for codec in document["codecs"]]
        if about.shard is not None or about.shape[1:] != (DIGEST_BYTES,) or about.chunk[1:] != (DIGEST_BYTES,):
            raise ValueError(f"expected chunks of whole digests, {DIGEST_BYTES} bytes each, and no shards")
        if codecs != ["bytes", "zstd", "crc32c"]:
            raise ValueError(f"codecs are {', '.join(map(str, codecs))}, expected bytes, zstd, crc32c")
        self._rows = about.chunk[0]
        self.parts = dict(_parts(ours(document.get("attributes")).get("arrays"), arrays, about.shape[0]))
        self._kept: dict[int, Bytes] = {}

    def shard(self, name: str, shard: tuple[int, ...], read: Callable[[str], bytes]) -> Bytes:
        """Digests (chunk, digest_byte) of one shard of an array; `read` gives a file by its path in the capture.

        Raises:
            ValueError: a file is damaged, or the array has no such shard.
            OSError: a file cannot be read.
        """
        part = self.parts[name]
        if len(shard) != len(part.grid) or any(
            (at + 1) * count > size for at, count, size in zip(shard, part.inside, part.grid, strict=True)
        ):
            raise ValueError(f"{DIGESTS} has no digests of it")
        return self.rows(part.numbers(shard), read)

    def rows(self, numbers: NDArray[np.int64], read: Callable[[str], bytes]) -> Bytes:
        """Digests (chunk, digest_byte) by their numbers.

        Raises:
            ValueError, OSError: as `shard`.
        """
        found = np.empty((len(numbers), DIGEST_BYTES), np.uint8)
        files = numbers // self._rows
        for file in np.unique(files).tolist():
            chosen = files == file
            found[chosen] = self._file(file, read)[numbers[chosen] - file * self._rows]
        return found

    def _file(self, number: int, read: Callable[[str], bytes]) -> Bytes:
        kept = self._kept.get(number)
        if kept is None:
            data = uncrc(read(f"{DIGESTS}/c/{number}/0"))
            most = self._rows * DIGEST_BYTES
            check_size(data, most)
            kept = np.frombuffer(_zstd.decode(data), np.uint8)
            if kept.size != most:
                raise ValueError(f"a file of {DIGESTS} holds {kept.size} bytes, expected {most}")
            kept = kept.reshape(self._rows, DIGEST_BYTES)
            if len(self._kept) >= KEPT_FILES:
                self._kept.clear()
            self._kept[number] = kept
        return kept


def _parts(found: object, arrays: Mapping[str, ArrayDescription], count: int) -> Iterator[tuple[str, Part]]:
    """What the attribute `arrays` says, held against the arrays themselves."""
    if not isinstance(found, Mapping):
        raise ValueError("its attribute arrays is no JSON object")
    for name, said in found.items():
        about = arrays.get(name)
        if about is None or about.shard is None or not isinstance(said, Mapping):
            raise ValueError(f"it tells of {str(name)[:100]!r}, which is no sharded array here")
        plain = part_of(about)
        first, grid, order = (said.get(key) for key in ("first", "grid", "order"))
        if not isinstance(first, int) or not isinstance(order, list) or sorted(map(str, order)) != sorted(
            map(str, plain.order)
        ):  # fmt: skip
            raise ValueError(f"what it tells of {name} is not understood")
        if grid != list(plain.grid) or not 0 <= first <= count - plain.count:
            raise ValueError(f"its grid of {name} is {grid}, expected {list(plain.grid)} within {count} digests")
        yield name, Part(first, plain.grid, plain.inside, tuple(map(int, order)))
