"""A place as zarr sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from attnlens.store.places.place import Place

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype


MOMENT = 0.002
"""Seconds in which reads of one file far away are gathered."""
GAP = 1 << 13
"""Bytes between two parts that are fetched rather than asked for separately."""


class PlaceStore(Store):
    """Reads a place. A file that cannot be read is an error; one that is not there is absent."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True
    supports_partial_writes = False  # zarr 3.1.1 wants this and set_partial_values of every store, 3.1.6 does not

    def __init__(self, place: Place) -> None:
        super().__init__(read_only=True)
        self._place = place
        self._is_open = True
        self._waiting: dict[str, list[tuple[int, int, asyncio.Future[bytes]]]] = {}

    @property
    def place(self) -> Place:
        """Where it reads."""
        return self._place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlaceStore) and other._place is self._place

    def __str__(self) -> str:
        return self._place.name

    def sizes(self, array: str) -> int:
        """Bytes of all files of an array; 1 TiB where that cannot be told without asking a network for each."""
        return 1 << 40 if self._place.blocking else sum(self._place.files(array).values())

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of a file, None if it is not there."""
        start, stop = _part(byte_range)
        try:
            if not self._place.blocking:
                data = self._place.read(key, start, stop)
            elif start >= 0 and stop is not None:
                data = await self._together(key, start, stop)
            else:
                data = await asyncio.to_thread(self._place.read, key, start, stop)
        except FileNotFoundError:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def _together(self, key: str, start: int, stop: int) -> bytes:
        """A part of a file far away, fetched with others of the same file that are asked for at the same moment."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, [])
        waiting.append((start, stop, answer))
        if len(waiting) == 1:
            asyncio.get_running_loop().call_later(MOMENT, lambda: asyncio.ensure_future(self._fetch(key)))
        return await answer

    async def _fetch(self, key: str) -> None:
        """Fetch what waits of a file, neighbours in one read, at the same time."""
        runs: list[list[tuple[int, int, asyncio.Future[bytes]]]] = []
        reach = 0
        for part in sorted(self._waiting.pop(key), key=lambda part: part[:2]):
            if runs and part[0] <= reach + GAP:
                runs[-1].append(part)
            else:
                runs.append([part])
                reach = 0
            reach = max(reach, part[1])
        await asyncio.gather(*(self._fetch_run(key, run) for run in runs))

    async def _fetch_run(self, key: str, run: list[tuple[int, int, asyncio.Future[bytes]]]) -> None:
        first = run[0][0]
        try:
            data = await asyncio.to_thread(self._place.read, key, first, max(stop for _, stop, _ in run))
        except Exception as error:  # noqa: BLE001 - each that waits is told
            for *_, answer in run:
                answer.set_exception(error)
            return
        for start, stop, answer in run:
            answer.set_result(data[start - first : stop - first])

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Bytes of several parts of files."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: int
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Bytes of several parts of a file, by their place in the request: asked for by zarr from 3.4 on.

        Its own way reads what lies between the parts as well, and puts what went wrong into an ExceptionGroup.
        """
        yield list(enumerate(await self.get_partial_values(prototype, [(key, part) for part in byte_ranges])))

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return self._place.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Not for a place that is read."""
        self._check_writable()

    async def set_partial_values(self, key_start_values: Iterable[tuple[str, int, bytes]]) -> None:
        """Not for a place that is read."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Not for a place that is read."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Every file."""
        for path in self._place.files():
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every file whose path begins with `prefix`."""
        for path in self._place.files():
            if path.startswith(prefix):
                yield path

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of files and folders in a folder."""
        under = prefix.rstrip("/")
        skip = len(under) + 1 if under else 0
        for name in sorted({path[skip:].split("/", 1)[0] for path in self._place.files(under)}):
            yield name


def _part(byte_range: ByteRequest | None) -> tuple[int, int | None]:
    match byte_range:
        case None:
            return 0, None
        case RangeByteRequest(start=start, end=end):
            return start, end
        case OffsetByteRequest(offset=offset):
            return offset, None
        case SuffixByteRequest(suffix=suffix):
            return -suffix, None
    raise TypeError(f"unknown byte range {byte_range!r}")
