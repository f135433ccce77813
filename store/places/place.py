"""What a reader asks of the place where a store is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from attnlens.store.places.json_text import check_bytes, parse_object

GROUP_DOCUMENT = "zarr.json"
FRONT = "manifest_file/front.bin"
"""The file of a capture that has copies of what every reader needs first. Beside an array's chunks, because zarr-python
warns of files in a group; and among what is made anew whenever a capture is sealed.
"""
WHOLE = 3 << 15
"""Files up to this size are fetched whole when they are far away, of larger ones the parts that are asked for."""


class Place(ABC):
    """Files by their path inside the store, relative and with slashes. Reading only; safe for several threads.

    Every method raises FileNotFoundError where there is no such file, and OSError where it cannot be read.
    """

    blocking = False
    """Whether a read may wait for a network, so that several should be under way at once."""
    apart = False
    """Whether every file costs a request of its own."""
    whole = 0
    """Size up to which a file is fetched whole, whatever part of it is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abstractmethod
    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes start … stop - 1 of a file, fewer where it ends before; a negative `start` counts from its end."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def files(self, under: str = "") -> dict[str, int]:
        """Every file below the folder `under`, by its path inside the store, sorted, with its size."""

    def part(self, path: str, start: int, stop: int, size: int) -> bytes:
        """Bytes start … stop - 1 of a file that has `size` bytes, as is known from elsewhere."""
        return self.read(path, start, stop)

    def checksum(self, path: str) -> int | None:
        """The crc32 that the place itself keeps of a file, None if it keeps none."""
        return None

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(path)
        except OSError:
            return False
        return True

    def folders(self, under: str = "") -> list[str]:
        """Names of the folders in `under` that hold files, sorted."""
        skip = len(under) + 1 if under else 0
        return sorted({rest.split("/", 1)[0] for path in self.files(under) if "/" in (rest := path[skip:])})

    def document(self, folder: str = "") -> dict[str, Any]:
        """The JSON object in the zarr.json of a folder.

        Raises:
            OSError: there is none, or it cannot be read.
            ValueError: it is not a JSON object.
        """
        path = join(folder, GROUP_DOCUMENT)
        check_bytes(self.size(path))
        return parse_object(self.read(path))


def join(folder: str, name: str) -> str:
    """The path of a file in a folder, "" being the store itself."""
    return f"{folder}/{name}" if folder else name
