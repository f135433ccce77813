"""Files of a store, copied byte for byte from wherever it is."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from attnlens.schemas.errors import StoreError
from attnlens.store.files import PARTIAL
from attnlens.store.places import Place

PIECE = 1 << 24


def copy_files(place: Place, source: str, target: Path) -> None:
    """Copy all files below the folder `source` of a place, but for writes that were cut short.

    Raises:
        StoreError: one cannot be read, or is not what was packed.
    """
    for path in place.files(source):
        if not path.endswith(PARTIAL):
            copy_file(place, path, target / path.removeprefix(f"{source}/"))


def copy_file(place: Place, name: str, target: Path) -> None:
    """Copy one file to `target`, where there must be none.

    Raises:
        StoreError: it cannot be read, or is not what was packed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for piece in checked_pieces(place, name):
            file.write(piece)


def checked_pieces(place: Place, name: str) -> Iterator[bytes]:
    """A file piece by piece, compared with the checksum that its place keeps, if it keeps one.

    Raises:
        StoreError: it cannot be read, or is not what was packed.
    """
    try:
        size, found = place.size(name), 0
        for start in range(0, size, PIECE):
            piece = place.read(name, start, min(size, start + PIECE))
            found = zlib.crc32(piece, found)
            yield piece
        wanted = place.checksum(name)
    except OSError as error:
        raise StoreError(f"{place}: {name} cannot be read ({error.strerror or error})") from error
    if wanted is not None and found != wanted:
        raise StoreError(f"{place}: {name} is damaged, its bytes are not those that were packed; run `lens verify`")
