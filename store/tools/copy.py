"""Files of a store, copied byte for byte from wherever it is, and compared on the way with what vouches for them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attnlens.schemas.errors import StoreError
from attnlens.schemas.validate import CAPTURE_NAME
from attnlens.store.files import PARTIAL
from attnlens.store.manifest import MANIFEST_ARRAYS, has_digest, place_hash
from attnlens.store.places import Place
from attnlens.store.places.place import GROUP_DOCUMENT
from attnlens.store.reader import Capture, Store

PIECE = 1 << 24


@dataclass(frozen=True)
class Proof:
    """What files have to be when they are copied. `hashes`: path in the store → sha256, of files that are vouched for.

    `watched`: the same of documents that change with every commit; if one does, what was copied does not belong
    together.
    """

    place: Place
    hashes: dict[str, str] = field(default_factory=dict)
    watched: dict[str, str] = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """After everything was copied.

        Raises:
            StoreError: a run has written to the store meanwhile.
        """
        for path, before in self.watched.items():
            try:
                same = place_hash(self.place, path) == before
            except OSError:
                same = False
            if not same:
                raise StoreError(
                    f"{self.place}: {path} was written to while it was copied, nothing was kept; try again when the "
                    "run that writes there is over"
                )


def proof_of_store(store: Store, files: Collection[str]) -> Proof:
    """What the files of a whole store have to be. Files of no capture are vouched for by nothing.

    Raises:
        StoreError: metadata or a manifest were changed, a file is missing, or one is there that no manifest lists.
    """
    place = store.place
    watched = {GROUP_DOCUMENT: place_hash(place, GROUP_DOCUMENT)}
    if not has_digest(place.document()):
        raise StoreError(f"{place}: {GROUP_DOCUMENT} was changed after it was written; run `lens verify`")
    proof, begun = Proof(place, watched=watched), set(store.ids)
    lists = store.metadata.lists
    for group in (lists.index, lists.batches) if lists is not None else ():
        if group is not None:
            proof.hashes.update({f"{group.folder}/{path}": digest for path, digest in group.files.items()})
    compare_lists(place, proof.hashes, files)
    by_capture: dict[str, list[str]] = {name: [] for name in store.ids}
    for path in files:
        name, _, inside = path.partition("/")
        if inside and CAPTURE_NAME.fullmatch(name):
            by_capture.setdefault(name, []).append(path)
    for name, paths in by_capture.items():
        if name in begun or f"{name}/{GROUP_DOCUMENT}" in paths:
            _, one = proof_of_capture(store, name, paths)
            proof.hashes.update(one.hashes)
            proof.watched.update(one.watched)
    return proof


def compare_lists(place: Place, hashes: Collection[str], files: Collection[str]) -> None:
    """Are the files there of the index and the batches that are in arrays?

    Raises:
        StoreError: one is missing.
    """
    if missing := set(hashes) - set(files):
        raise StoreError(f"{place}: {min(missing)} is missing, the store's zarr.json lists it; run `lens verify`")


def proof_of_capture(store: Store, name: str, files: Collection[str]) -> tuple[Capture, Proof]:
    """A capture, opened anew, and what its files have to be; `files`: those that are there, by path in the store.

    The files that its digest vouches for are hashed before the capture is read. So what is copied belongs to the
    manifest that was read, also if another capture takes its place meanwhile.

    Raises:
        StoreError: as `proof_of_store`.
    """
    place, prefix = store.place, f"{name}/"
    own = tuple(prefix + one for one in (GROUP_DOCUMENT, *(f"{array}/" for array in MANIFEST_ARRAYS)))
    try:
        before = {path: place_hash(place, path) for path in files if path.startswith(own)}
    except OSError as error:
        raise StoreError(f"{place}: {error.filename or name} cannot be read ({error.strerror or error})") from error
    capture = store.open(name)
    if capture.hashes is None:
        document = prefix + GROUP_DOCUMENT
        return capture, Proof(place, watched={document: before[document]})
    hashes = before | {prefix + path: digest for path, digest in capture.hashes.items()}
    compare_names(place, hashes, [path for path in files if not path.endswith(PARTIAL)])
    return capture, Proof(place, hashes)


def compare_names(place: Place, hashes: Collection[str], files: Collection[str]) -> None:
    """Are the files those that the manifest lists?

    Raises:
        StoreError: one is missing, or there is one more.
    """
    if missing := set(hashes) - set(files):
        raise StoreError(f"{place}: {min(missing)} is missing, the capture's manifest lists it; run `lens verify`")
    if added := set(files) - set(hashes):
        raise StoreError(f"{place}: {min(added)} is not in the capture's manifest; run `lens verify`")


def copy_capture(store: Store, name: str, target: Path) -> Capture:
    """Copy all files of a capture to the folder `target`, but for writes that were cut short. Returns the capture.

    Raises:
        StoreError: one cannot be read, or is not what was written.
    """
    files = [path for path in store.place.files(name) if not path.endswith(PARTIAL)]
    capture, proof = proof_of_capture(store, name, files)
    _copy_files(store.place, files, name, target, proof.hashes)
    proof.check_unchanged()
    return capture


def copy_array(capture: Capture, name: str, target: Path) -> None:
    """Copy all files of an array to the folder `target`.

    Raises:
        StoreError: one cannot be read, or is not what was written.
    """
    source = f"{capture.id}/{name}"
    files = [path for path in capture.place.files(source) if not path.endswith(PARTIAL)]
    hashes = {f"{capture.id}/{path}": digest for path, digest in (capture.hashes or {}).items()}
    if capture.hashes is None:
        capture[name].check_there()
    else:
        compare_names(capture.place, [path for path in hashes if path.startswith(f"{source}/")], files)
    _copy_files(capture.place, files, source, target, hashes)


def _copy_files(place: Place, files: Collection[str], source: str, target: Path, hashes: Mapping[str, str]) -> None:
    for path in files:
        copy_file(place, path, target / path.removeprefix(f"{source}/"), hashes.get(path))


def copy_file(place: Place, name: str, target: Path, wanted: str | None = None) -> None:
    """Copy one file to `target`, where there must be none. `wanted`: its sha256, None if nothing vouches for it.

    Raises:
        StoreError: it cannot be read, or is not what was written or packed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for piece in checked_pieces(place, name, wanted):
            file.write(piece)


def checked_pieces(place: Place, name: str, wanted: str | None = None) -> Iterator[bytes]:
    """A file piece by piece; after the last one it was compared with its sha256 `wanted`, or, where nothing vouches for
    it, with the checksum that its place keeps, if it keeps one. Nothing is read twice.

    Raises:
        StoreError: it cannot be read, or is not what was written or packed.
    """
    try:
        size, crc, digest = place.size(name), 0, hashlib.sha256()
        packed = place.checksum(name)
        for start in range(0, size, PIECE):
            piece = place.read(name, start, min(size, start + PIECE))
            if packed is not None:
                crc = zlib.crc32(piece, crc)
            if wanted is not None:
                digest.update(piece)
            yield piece
    except OSError as error:
        raise StoreError(f"{place}: {name} cannot be read ({error.strerror or error})") from error
    if packed is not None and crc != packed:
        raise StoreError(f"{place}: {name} is damaged, its bytes are not those that were packed; run `lens verify`")
    if wanted is not None and digest.hexdigest() != wanted:
        advice = "run `lens verify`, or fetch the store again"
        raise StoreError(f"{place}: {name} is not the file that was written; {advice}")
