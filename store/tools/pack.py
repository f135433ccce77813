"""`lens pack` and `lens unpack`: one file of a store's many, readable in place, and back."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import InputError
from attnlens.store.files import is_partial
from attnlens.store.front import index_bytes
from attnlens.store.places import ZIP_SUFFIX, Archive, Place, beside, stem_of
from attnlens.store.places.archive import COMMENT, END, TAILS, entries_of, header_length, skeleton, tails_entry
from attnlens.store.places.place import FRONT, GROUP_DOCUMENT
from attnlens.store.reader import open_store
from attnlens.store.tools.copy import Proof, checked_pieces, copy_file, proof_of_store
from attnlens.store.tools.output import new_store

SMALL = 1 << 16
"""Files up to this many bytes lie together at the end of the zip, beside its table of contents: one read has them."""

ENDS_BYTES = 1 << 15
"""The most that copies of such indexes take."""


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was written: where, how many files of how many bytes together."""

    path: Path
    files: int
    bytes: int


def pack(
    store: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackReport:
    """Write the store as one zip whose entries are not compressed. The same store gives the same bytes.

    Each file of a finished capture is compared with the manifest as it is written. Nothing vouches for the
    files of a capture that is not finished: they are packed as they are, unless rows are committed meanwhile.

    Args:
        store: A store, packed or not.
        output: The zip, `NAME.zarr.zip` beside the store if None.
        overwrite: Replace a packed store that is there.
        progress: Where files are counted.

    Raises:
        InputError: something is at `output`.
        StoreError: `store` is not one, a file of it cannot be read or is not what was written, or the disk refuses.
    """
    progress = progress or Silent()
    source = open_store(store)
    place = source.place
    path = Path(output) if output is not None else beside(store, stem_of(store) + ZIP_SUFFIX)
    if path.suffix != ".zip":
        raise InputError(f"-o {path}: a packed store is named {stem_of(path)}{ZIP_SUFFIX}")
    sizes = {name: size for name, size in place.files().items() if not is_partial(name) and name != TAILS}
    proof = proof_of_store(source, sizes)
    progress.stage("packing", len(sizes), "files")
    with new_store(path, overwrite=overwrite) as temporary:
        with temporary.open("xb") as file:
            _write(file, proof, sizes, progress)
            proof.check_unchanged()
        written = temporary.stat().st_size
    progress.end()
    return PackReport(path=path, files=len(sizes), bytes=written)


def unpack(
    store: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackReport:
    """Write a packed store as a folder: the files that were packed, byte for byte.

    Args:
        store: A packed store.
        output: The folder, `NAME.zarr` beside the zip if None.
        overwrite: Replace a store that is there.
        progress: Where files are counted.

    Raises:
        InputError: something is at `output`, or the store is a folder already.
        StoreError: `store` is not one, a file of it is damaged, or the disk refuses.
    """
    progress = progress or Silent()
    source = open_store(store)
    place = source.place
    if not isinstance(place, Archive):
        raise InputError(f"{store} is not packed")
    path = Path(output) if output is not None else beside(store, f"{stem_of(store)}.zarr")
    sizes = place.files()
    proof = proof_of_store(source, sizes)
    progress.stage("unpacking", len(sizes), "files")
    with new_store(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for name in sizes:
            copy_file(place, name, temporary / name, proof.hashes.get(name))
            progress.advance()
    progress.end()
    return PackReport(path=path, files=len(sizes), bytes=sum(sizes.values()))


def order(sizes: dict[str, int]) -> list[str]:
    """Large files, zarr.json of the arrays, small files, zarr.json of the captures, zarr.json of the store.

    So what a reader needs first is at the end, the smallest last.
    """

    def rank(name: str) -> tuple[int, int, str]:
        if name.endswith(GROUP_DOCUMENT):
            return (4, 3, 1)[min(2, name.count("/"))], 0, name
        small = sizes[name] <= SMALL and not name.endswith(f"/{FRONT}")  # copies of what is there anyway
        return (2, -sizes[name], name) if small else (0, 0, name)

    return sorted(sizes, key=rank)


def _write(file: BinaryIO, proof: Proof, sizes: dict[str, int], progress: Progress) -> None:
    place = proof.place
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in order(sizes):
            info = _entry(name)
            info.file_size = sizes[name]
            with archive.open(info, "w") as entry:
                for piece in checked_pieces(place, name, proof.hashes.get(name)):
                    entry.write(piece)
            progress.advance()
        if ends := _ends(place, sizes):
            archive.writestr(_entry(TAILS), tails_entry(ends))
    file.flush()
    _sign(file)


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # dated 1980, so that equal stores give equal zips
    info.external_attr = 0o100644 << 16
    info.create_system = 3
    return info


def _ends(place: Place, sizes: dict[str, int]) -> dict[str, bytes]:
    """The index at the end of every large sharded file, so that a reader far away need not ask for it."""
    found: dict[str, bytes] = {}
    lengths: dict[str, int] = {}
    total = 0
    for name in sorted(name for name, size in sizes.items() if size > SMALL and "/c/" in name):
        array = name.partition("/c/")[0]
        if array not in lengths:
            lengths[array] = _index_bytes(place, array)
        if not 0 < lengths[array] <= sizes[name]:
            continue
        total += lengths[array]
        if total > ENDS_BYTES:
            break
        found[name] = place.read(name, -lengths[array])
    return found


def _index_bytes(place: Place, array: str) -> int:
    """Bytes of the index of a sharded array's files, 0 if it has none."""
    try:
        return index_bytes(place.document(array))
    except (OSError, ValueError):
        return 0


def _sign(file: BinaryIO) -> None:
    """Put a hash of the zip's own structure into its comment, so that `lens verify` can vouch for that too."""
    size = file.seek(0, 2)
    with Path(file.name).open("rb") as written:
        contents = []
        for path, entry in entries_of(written, size, file.name, below_top=False).items():
            if path == TAILS:
                continue  # counts as structure
            written.seek(entry.header)
            contents.append((entry.header + header_length(written.read(30), path), entry.size))

        def read(start: int, count: int) -> bytes:
            written.seek(start)
            return written.read(count)

        comment = COMMENT + skeleton(read, size - 2, contents).encode()
    assert END.size >= 2
    file.seek(size - 2)
    file.write(len(comment).to_bytes(2, "little") + comment)
