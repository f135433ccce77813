"""Adding arrays to a complete capture: all of them, with manifest and digests, or none.

The capture is made anew in a folder that readers ignore, its old files as links, and changes places with the one that
is there when it is whole. No file that a reader may have open is touched, and a process that is killed leaves the old
capture or the new one.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from attnlens.schemas.arrays import ARRAY
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.schemas.version import NAMESPACE
from attnlens.store.create import create_array, write_digests
from attnlens.store.exchange import BEFORE, take_place
from attnlens.store.faults import write_error
from attnlens.store.files import (
    PARTIAL,
    clean,
    clean_text,
    group_document,
    read_document,
    walk,
    write_atomic,
    write_document,
)
from attnlens.store.front import write_front
from attnlens.store.layout import ChunkLayout, list_layout
from attnlens.store.lists import with_index
from attnlens.store.lock import lock_store
from attnlens.store.manifest import MANIFEST_ARRAYS, PROOF_ARRAYS, covered, document_digest, file_hash, manifest_hash
from attnlens.store.places import Folder
from attnlens.store.places.place import GROUP_DOCUMENT
from attnlens.store.planned import planned_arrays
from attnlens.store.reader import Capture
from attnlens.store.replacement import settle
from attnlens.store.root import current_entries, indexed, read_root, write_root
from attnlens.store.tidy import tidy


class Extension:
    """New arrays of a capture, being filled. `arrays`: name → array of zarr, whole and empty."""

    def __init__(self, capture: Capture, folder: Path, metadata: CaptureMetadata) -> None:
        self._capture = capture
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._folder = folder
        self.metadata = metadata
        self.arrays: dict[str, zarr.Array[Any]] = {}
        store, length = LocalStore(folder), capture.n_token
        # Not what is missing but what is new: a crop may have left arrays out.
        before = {plan.spec.name for plan in planned_arrays(capture.metadata, capacity=length, key_rows_hold=0)}
        for plan in planned_arrays(metadata, capacity=length, key_rows_hold=0):
            name = plan.spec.name
            if name not in before and not name.startswith("vocabulary_"):
                self.arrays[name] = create_array(
                    store, capture.id, name, plan.shape, plan.layout, spec=plan.spec, model_dtype=plan.model_dtype
                )

    def vocabulary(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Append entries of the vocabulary that the capture does not have yet."""
        self._ids.extend(ids)
        self._texts.extend(clean_text(text) for text in texts)

    def write_vocabulary(self) -> None:
        """Put the whole vocabulary, old and new, among the arrays."""
        old = self._capture.vocabulary if "vocabulary_id" in self._capture else {}
        columns: dict[str, list[Any]] = {
            "vocabulary_id": [*old, *self._ids],
            "vocabulary_text": [*old.values(), *self._texts],
        }
        for name, values in columns.items():
            chunk = ChunkLayout(self._capture[name].chunks) if name in self._capture else list_layout(len(values))
            text = ARRAY[name].dtype == "string"
            self._list(name, np.asarray(values, np.dtypes.StringDType() if text else np.int32), chunk)

    def write_manifest(self, hashes: Mapping[str, str]) -> None:
        """Put the manifest among the arrays."""
        names = sorted(hashes)
        for name, values in zip(MANIFEST_ARRAYS, (names, [hashes[path] for path in names]), strict=True):
            self._list(name, np.asarray(values, np.dtypes.StringDType()), list_layout(len(values)))

    def _list(self, name: str, values: Any, chunk: ChunkLayout) -> None:
        array = create_array(LocalStore(self._folder), self._capture.id, name, (len(values),), chunk)
        array[:] = values
        self.arrays[name] = array


@contextmanager
def extending(store: Path) -> Iterator[None]:
    """The store to this process alone, and without what one that was killed has left.

    Raises:
        InputError: the store is not a folder, or another process is writing there.
        StoreError: the disk refuses.
    """
    if not store.is_dir():
        raise InputError(f"{store} is no folder: arrays are added to a store in a folder (`lens unpack` makes one)")
    try:
        lock = lock_store(store)
        try:
            settle(store)
            tidy(store, before=lambda: _write_index(store))
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise write_error(error, store, 0) from error
    try:
        yield
    finally:
        lock.release()


def check_extendable(capture: Capture) -> None:
    """Refuses a capture that is not complete.

    Raises:
        InputError: as said.
    """
    if capture.status != "complete":
        raise InputError(f"capture {capture.id} is {capture.status}: arrays are added to complete captures only")


def extend_capture(store: Path, capture: Capture, update: Mapping[str, Any], fill: Callable[[Extension], None]) -> None:
    """Give a capture the arrays that its metadata, changed by `update`, want; `fill` writes them. Inside `extending`.

    Raises:
        InputError: the capture is not complete.
        StoreError: the store is damaged, or the disk refuses; the store is as it was.
    """
    check_extendable(capture)
    metadata = CaptureMetadata.model_validate({**capture.metadata.model_dump(mode="json"), **update})
    old = capture.manifest()
    aside = store / f"{capture.id}.{secrets.token_hex(8)}{PARTIAL}"
    try:
        aside.mkdir()
        extension = Extension(capture, aside, metadata)
        fill(extension)
        extension.write_vocabulary()
        # Digests and hashes of what stays are taken over, not made again: damage must not be vouched for.
        old_digests = capture.hashed_chunks(lambda name: name not in extension.arrays)
        write_digests(LocalStore(aside), capture.id, aside / capture.id, old_digests)
        made = dict(walk(aside / capture.id))
        anew = {*extension.arrays, *PROOF_ARRAYS}
        kept = {name: digest for name, digest in old.items() if name.split("/", 1)[0] not in anew}
        hashes = kept | {name: file_hash(made[name]) for name in covered(made)}
        extension.write_manifest(hashes)
        for name in kept:
            _link(store / capture.id / name, aside / capture.id / name)
        proof = {"manifest": manifest_hash(hashes), "front": write_front(aside / capture.id)}
        _describe(store / capture.id, aside / capture.id, metadata, proof)
        _change_places(store, capture.id, aside)
    except OSError as error:
        raise write_error(error, store, capture.committed) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links.

    Raises:
        StoreError: it is a pipe, a device or the like, for which whoever reads it would wait.
        OSError: it is not there, or cannot be linked or copied.
    """
    if not source.is_file():
        source.stat()
        raise StoreError(f"{source} is no plain file; run `lens verify`")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def _describe(old: Path, new: Path, metadata: CaptureMetadata, proof: Mapping[str, str]) -> None:
    """Write the zarr.json of the new capture, with a digest that vouches for what it holds.

    `proof`: its fields manifest and front.
    """
    values = clean(metadata.model_dump(mode="json", exclude={"digest"})) | dict(proof)
    attributes = {**read_document(old)["attributes"], NAMESPACE: values}
    arrays = sorted(path.name for path in new.iterdir() if path.is_dir())
    document = group_document(attributes, {name: read_document(new / name) for name in arrays})
    values["digest"] = document_digest(document)
    write_document(new, document)


def _change_places(store: Path, name: str, aside: Path) -> None:
    """Put the new capture where the old one is, and into the store's index; as before if that fails.

    Meanwhile the store has no index: none ever speaks of another capture than is there. It is made of the one before.
    """
    places = aside / name, store / name, aside / BEFORE / name
    before, taken = (store / GROUP_DOCUMENT).read_bytes(), False
    root = read_root(Folder(store))
    others = current_entries(Folder(store), root, changed={name})
    try:
        write_root(store, with_index(root, None), running=True, keep=True)
        take_place(*places)
        taken = True
        write_root(store, indexed(store, with_index(root, others)), running=False)
    except BaseException:
        if taken:
            take_place(*places)
        write_atomic(store / GROUP_DOCUMENT, before, durable=True)
        raise


def _write_index(store: Path) -> None:
    """Bring the store's index up to date."""
    write_root(store, indexed(store, read_root(Folder(store))), running=False)
