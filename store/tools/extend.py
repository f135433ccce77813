"""Adding arrays to a complete capture: all of them, with manifest and digests, or none.

New arrays are made beside the store and moved in; files that change are replaced one by one, the old bytes kept until
all is well. The capture's zarr.json comes last but for the store's own: until then a reader sees the capture as it was.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from attnlens.store.create import create_array
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
from attnlens.store.layout import ChunkLayout, list_layout
from attnlens.store.manifest import MANIFEST_ARRAYS, covered, document_digest, file_hash, manifest_hash
from attnlens.store.places import Folder
from attnlens.store.places.place import GROUP_DOCUMENT
from attnlens.store.planned import planned_arrays
from attnlens.store.reader import Capture
from attnlens.store.root import read_root, root_entries, write_root


class Extension:
    """New arrays of a capture, being filled. `arrays`: name → array of zarr, whole and empty."""

    def __init__(self, capture: Capture, folder: Path, metadata: CaptureMetadata) -> None:
        self._capture = capture
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._folder = folder
        self.metadata = metadata
        self.arrays: dict[str, zarr.Array[Any]] = {}
        store = LocalStore(folder)
        for plan in planned_arrays(metadata, capacity=capture.n_token, key_rows_hold=0):
            name = plan.spec.name
            if name not in capture and not name.startswith("vocabulary_"):
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


def extend_capture(store: Path, capture: Capture, update: Mapping[str, Any], fill: Callable[[Extension], None]) -> None:
    """Give a capture the arrays that its metadata, changed by `update`, want; `fill` writes them.

    Raises:
        InputError: the store is not a folder, or the capture is not complete.
        StoreError: the disk refuses; the store is as it was.
    """
    if not store.is_dir():
        raise InputError(f"{store} is no folder: arrays are added to a store in a folder (`lens unpack` makes one)")
    if capture.status != "complete":
        raise InputError(f"capture {capture.id} is {capture.status}: arrays are added to complete captures only")
    metadata = CaptureMetadata.model_validate({**capture.metadata.model_dump(mode="json"), **update})
    aside = store.resolve().with_name(f".{store.resolve().name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        aside.mkdir()
        extension = Extension(capture, aside, metadata)
        fill(extension)
        extension.write_vocabulary()
        new = {name: path for name, path in walk(aside / capture.id) if name != GROUP_DOCUMENT}
        old = dict(zip(*(map(str, capture[name][:]) for name in MANIFEST_ARRAYS), strict=True))
        if manifest_hash(old) != capture.metadata.manifest:
            raise StoreError(
                f"{store}: the manifest of capture {capture.id} is not the one it names; run `lens verify`"
            )
        # Hashes of files that stay are taken over, not made again: damage must not be vouched for.
        hashes = {**old, **{name: file_hash(path) for name, path in new.items() if name in covered(new)}}
        extension.write_manifest(hashes)
        with _put(aside / capture.id, store / capture.id, set(capture.names)):
            _describe(store, capture.id, metadata, manifest_hash(hashes))
    except OSError as error:
        raise write_error(error, store, capture.committed) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _describe(store: Path, name: str, metadata: CaptureMetadata, manifest: str) -> None:
    """Replace the capture's zarr.json, then the store's, with digests that vouch for what is there now."""
    folder = store / name
    values = clean(metadata.model_dump(mode="json", exclude={"digest"})) | {"manifest": manifest}
    attributes = {**read_document(folder)["attributes"], NAMESPACE: values}
    arrays = sorted(path.parent.name for path in folder.glob(f"*/{GROUP_DOCUMENT}"))
    document = group_document(attributes, {array: read_document(folder / array) for array in arrays})
    values["digest"] = document_digest(document)
    write_document(folder, document)
    place = Folder(store)
    root = read_root(place)
    write_root(store, root.model_copy(update={"index": root_entries(place, root.planned)}), running=False)


@contextmanager
def _put(new: Path, folder: Path, known: Collection[str]) -> Iterator[None]:
    """Moves arrays from `new` into a capture's folder; undone, with both zarr.json, unless the block ends well.

    Arrays that the capture knows are replaced file by file, so that a reader who has one open is not disturbed.
    """
    added = [path.name for path in sorted(new.iterdir()) if path.is_dir() and path.name not in known]
    changed = {name: path for name, path in walk(new) if name.split("/", 1)[0] in known}
    kept = [*changed, GROUP_DOCUMENT, f"../{GROUP_DOCUMENT}"]
    before = {name: (folder / name).read_bytes() for name in kept if (folder / name).exists()}
    try:
        for name in added:
            shutil.rmtree(folder / name, ignore_errors=True)  # left by one that was killed here: no reader knows it
            (new / name).rename(folder / name)
        for name, path in changed.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, path.read_bytes())
        yield
    except BaseException:
        for name in kept:
            if name in before:
                write_atomic(folder / name, before[name])
            else:
                (folder / name).unlink(missing_ok=True)
        for name in added:
            shutil.rmtree(folder / name, ignore_errors=True)
        raise
