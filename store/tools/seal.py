"""The last step of every tool that makes a capture: manifest, front, metadata, digest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from zarr.storage import LocalStore

from attnlens.schemas.errors import StoreError
from attnlens.schemas.metadata import CaptureMetadata, StoreMetadata
from attnlens.schemas.version import NAMESPACE
from attnlens.store import layout
from attnlens.store.commit import COORDINATES
from attnlens.store.create import create_array, write_digests
from attnlens.store.files import clean, group_document, read_document, write_document
from attnlens.store.front import write_front
from attnlens.store.lists import with_index
from attnlens.store.manifest import MANIFEST_ARRAYS, PROOF_ARRAYS, document_digest, file_hashes, listed, manifest_hash
from attnlens.store.places import Folder
from attnlens.store.root import root_entries, write_root


def seal_capture(root: Path, metadata: CaptureMetadata, others: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of the files that are in a capture's folder, its front, then its zarr.json with the digest.

    Args:
        root: The store's folder.
        metadata: All about the capture; `manifest`, `front` and `digest` are made here.
        others: Attributes of the group beside ours.
    """
    folder = root / metadata.id
    for name in PROOF_ARRAYS:
        shutil.rmtree(folder / name, ignore_errors=True)
    store = LocalStore(root)
    known = write_digests(store, metadata.id, folder)
    names = listed(folder)
    hashes = file_hashes(folder, names, known)
    for name, values in zip(MANIFEST_ARRAYS, (names, hashes), strict=True):
        array = create_array(store, metadata.id, name, (len(values),), layout.list_layout(len(values)))
        array[:] = np.asarray(values, dtype=np.dtypes.StringDType())
    manifest = manifest_hash(dict(zip(names, hashes, strict=True)))
    front = write_front(folder) if metadata.status == "complete" else None
    proof = {"manifest": manifest, "front": front}
    values = clean(metadata.model_copy(update=proof).model_dump(mode="json", exclude={"digest"}))
    attributes: dict[str, Any] = {"coordinates": COORDINATES, **(others or {}), NAMESPACE: values}
    arrays = sorted(path.name for path in folder.iterdir() if path.is_dir())
    try:
        document = group_document(attributes, {name: read_document(folder / name) for name in arrays})
    except (OSError, ValueError) as error:
        raise StoreError(f"{metadata.id}: the metadata of an array cannot be read ({error})") from error
    values["digest"] = document_digest(document)
    write_document(folder, document)


def seal_store(root: Path, metadata: StoreMetadata) -> None:
    """Write the store's zarr.json with the index of its captures."""
    write_root(root, with_index(metadata, root_entries(Folder(root), metadata.planned)), running=False)


def seal(root: Path, name: str) -> None:
    """Seal a capture again whose arrays were changed, or that got further ones."""
    attributes = read_document(root / name)["attributes"]
    seal_capture(root, CaptureMetadata.model_validate(attributes[NAMESPACE]), attributes)
    seal_store(root, StoreMetadata.model_validate(read_document(root)["attributes"][NAMESPACE]))
