"""A list of the store in arrays of its own, a group in the store's folder whose name comes from what is in it.

So no reader ever sees half of one: the store's zarr.json names the group, with the sha256 of every file, and a changed
list is another group.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnlens.schemas.errors import StoreError
from attnlens.schemas.lists import CHUNK_ENTRIES, LISTS, Column, ListAxis, ListName
from attnlens.schemas.metadata import ListFiles
from attnlens.schemas.version import NAMESPACE
from attnlens.store.descriptions import default_limits, describe_array
from attnlens.store.durable import flush, flush_names
from attnlens.store.files import PARTIAL, group_document, read_document, walk, write_document
from attnlens.store.manifest import file_hash, manifest_hash
from attnlens.store.places import Place
from attnlens.store.places.checked import Checked
from attnlens.store.places.json_text import parse_object
from attnlens.store.places.place import GROUP_DOCUMENT, join

CHUNK_BYTES = 1 << 22
"""About the most text in one chunk that is written."""
FILE_BYTES = 1 << 26
"""The largest file of a list that is read: no chunk of text may hold more."""
BLOCK_BYTES = 1 << 28
"""The most text that is held at a time, of one array."""

Values = Sequence[str] | Sequence[int]


def write_list(root: Path, kind: ListName, columns: Mapping[str, Values]) -> ListFiles:
    """Write a list into the store's folder: on the disk when this returns, and seen by nobody before it is named.

    Args:
        root: The store's folder.
        kind: Which list.
        columns: Array name → its values.

    Raises:
        OSError: the disk refuses; nothing is left.
    """
    from zarr.storage import LocalStore

    half = root / f"{kind}.{secrets.token_hex(8)}{PARTIAL}"
    try:
        half.mkdir()
        store = LocalStore(half)
        for column in LISTS[kind]:
            _write(store, column, columns[column.name])
        documents = {column.name: read_document(half / column.name) for column in LISTS[kind]}
        write_document(half, group_document({}, documents))
        files = {path: file_hash(file) for path, file in walk(half)}
        about = ListFiles(folder=f"{kind}-{manifest_hash(files)[:16]}", files=files)
        _publish(half, root / about.folder, files)
        return about
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _publish(half: Path, place: Path, files: Mapping[str, str]) -> None:
    """Give a list its name. The same may be there: named already, or left by a process that was killed."""
    if place.exists():
        if {path: file_hash(file) for path, file in walk(place)} == files:
            flush(place)
            return
        shutil.rmtree(place)
    flush(half)
    half.rename(place)
    flush_names(place)


def _write(store: Any, column: Column, values: Values) -> None:
    import numpy as np
    import zarr

    from attnlens.store.packing import FRAME

    text = column.dtype == "string"
    chunk = (max(1, min(len(values), _entries(values) if text else CHUNK_ENTRIES)),)
    array = zarr.create_array(
        store,
        name=column.name,
        shape=(len(values),),
        dtype=str if text else column.dtype,
        chunks=chunk,
        filters=FRAME.filters(),
        compressors=FRAME.compressors(chunk, 1 if text else 4),
        fill_value="" if text else -1,
        attributes={NAMESPACE: {"meaning": column.meaning}},
        dimension_names=(column.axis,),
        config={"write_empty_chunks": True},
    )
    if len(values):
        array[:] = np.asarray(values, np.dtypes.StringDType() if text else np.int32)


def _entries(values: Values) -> int:
    """Entries of a chunk: as many as fit, wherever it begins."""
    sizes = [len(str(value).encode()) for value in values]
    entries = CHUNK_ENTRIES
    while entries > 1 and max(sum(sizes[at : at + entries]) for at in range(0, len(sizes), entries)) > CHUNK_BYTES:
        entries //= 2
    return entries


class ListArrays:
    """A list, read block by block. Every file is compared with its sha256 before it is used."""

    def __init__(self, place: Place, kind: ListName, about: ListFiles, most: int) -> None:
        """`most`: entries that it may have at most.

        Raises:
            StoreError: it is damaged, or not as the format says.
        """
        self._place, self._about, self._columns = place, about, {column.name: column for column in LISTS[kind]}
        self._checked = Checked(place, about.folder, about.files, (), None)
        self._lengths: dict[ListAxis, int] = {}
        self._documents: dict[str, Mapping[str, Any]] = {}
        try:
            self._check_size(GROUP_DOCUMENT)
            document = parse_object(self._checked.read(join(about.folder, GROUP_DOCUMENT)))
            copies = document["consolidated_metadata"]["metadata"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._damaged(GROUP_DOCUMENT, error) from None
        for name, column in self._columns.items():
            try:
                self._documents[name] = copies[name]
                self._describe(column, most)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._damaged(name, error) from None

    def length(self, axis: ListAxis) -> int:
        """Entries along an axis."""
        return self._lengths[axis]

    def blocks(self, *names: str) -> Iterator[list[tuple[Any, ...]]]:
        """The values of some arrays along one axis, some thousand entries at a time.

        Raises:
            StoreError: a file is damaged, or not the one that was written.
        """
        arrays = [self._open(name) for name in names]
        for start in range(0, self._lengths[self._columns[names[0]].axis], CHUNK_ENTRIES):
            parts = [self._read(name, array, start) for name, array in zip(names, arrays, strict=True)]
            yield list(zip(*parts, strict=True))

    def rows(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """The same, one by one."""
        for block in self.blocks(*names):
            yield from block

    def _describe(self, column: Column, most: int) -> None:
        found = describe_array(self._documents[column.name], default_limits())
        if found.axes != (column.axis,) or found.dtype != column.dtype or found.shard is not None:
            raise ValueError(f"is {found.dtype} over {found.axes}, expected {column.dtype} over ({column.axis})")
        if found.chunk[0] > CHUNK_ENTRIES:
            raise ValueError(f"its chunks have {found.chunk[0]} entries, expected at most {CHUNK_ENTRIES}")
        length = self._lengths.setdefault(column.axis, found.shape[0])
        if length != found.shape[0]:
            raise ValueError(f"has {found.shape[0]} entries, other arrays along {column.axis} have {length}")
        if length > most:
            raise ValueError(f"has {length} entries, but the store has planned {most} captures")

    def _open(self, name: str) -> Any:
        import zarr
        from zarr.storage import StorePath

        from attnlens.store.bounded import bounded
        from attnlens.store.faults import DECODE_ERRORS
        from attnlens.store.places.zarr_store import PlaceStore

        path = StorePath(PlaceStore(self._checked), join(self._about.folder, name))
        try:
            return zarr.Array.from_dict(path, bounded(self._documents[name]))
        except DECODE_ERRORS as error:
            raise self._damaged(name, error) from None

    def _read(self, name: str, array: Any, start: int) -> list[Any]:
        """Entries of one array from `start` on, a chunk at a time, so that no more is held than a block may have."""
        from attnlens.store.faults import DECODE_ERRORS

        values: list[Any] = []
        size, chunk, stop = 0, int(array.chunks[0]), min(start + CHUNK_ENTRIES, int(array.shape[0]))
        for number in range(start // chunk, -(-stop // chunk)):
            file = f"{name}/{array.metadata.encode_chunk_key((number,))}"
            try:
                self._check_size(file)
                found = array[max(start, number * chunk) : min(stop, (number + 1) * chunk)].tolist()
            except DECODE_ERRORS as error:
                raise self._damaged(file, error) from None
            size += sum(map(len, found)) if found and isinstance(found[0], str) else 0
            if size > BLOCK_BYTES:
                raise self._damaged(
                    name, ValueError(f"{CHUNK_ENTRIES} entries have more than {BLOCK_BYTES} characters")
                )
            values += found
        return values

    def _check_size(self, file: str) -> None:
        """A file that is not named would be taken for one that holds fill values only."""
        if file not in self._about.files:
            raise ValueError("is not among the files that the store's zarr.json names")
        try:
            size = self._place.size(join(self._about.folder, file))
        except FileNotFoundError:
            raise ValueError("is missing") from None
        if size > FILE_BYTES:
            raise ValueError(f"larger than {FILE_BYTES} bytes")

    def _damaged(self, file: str, error: BaseException) -> StoreError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        said = f"no {error}" if isinstance(error, KeyError) else reason or type(error).__name__
        return StoreError(f"{self._place}: {self._about.folder}/{file}: {said}; run `lens verify`")
