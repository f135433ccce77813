"""Captures that a process has finished, and died before it published them, are published by whoever comes next.

A finished capture of a batch waits up to a second for the flush that it shares with others (`group`). All of it is
written by then, the zarr.json that says so as well, under the name of a file that is still being written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore

from attnlens.schemas.version import NAMESPACE
from attnlens.store.durable import flush, flush_names
from attnlens.store.faults import DECODE_ERRORS
from attnlens.store.files import PARTIAL
from attnlens.store.manifest import MANIFEST_ARRAYS, document_digest, file_hashes, listed, manifest_hash
from attnlens.store.places.json_text import parse_object
from attnlens.store.places.place import FRONT, GROUP_DOCUMENT


def adopt(folders: Iterable[Path]) -> None:
    """Mark captures complete that are finished. Nobody else may be writing them.

    Each is compared with its manifest first: after a power cut some of it may be missing, and then it stays as it is.

    Raises:
        OSError: the disk refuses.
    """
    found = {folder: document for folder in folders if (document := finished_document(folder)) is not None}
    if not found:
        return
    flush(*found)
    for folder, document in found.items():
        document.replace(folder / GROUP_DOCUMENT)
    flush_names(*(folder / GROUP_DOCUMENT for folder in found))


def finished_document(folder: Path) -> Path | None:
    """The file that is to be the zarr.json of a finished capture; None if the capture is not finished, or not whole."""
    for staged in folder.glob(f"{Path(GROUP_DOCUMENT).stem}.*{PARTIAL}"):
        try:
            if _is_whole(folder, staged):
                return staged
        except DECODE_ERRORS:
            continue
    return None


def _is_whole(folder: Path, staged: Path) -> bool:
    document = parse_object(staged.read_bytes())
    about = document["attributes"][NAMESPACE]
    if about["status"] != "complete" or about["digest"] != document_digest(document):
        return False
    names = listed(folder)
    hashes = file_hashes(folder, names)
    if about["manifest"] != manifest_hash(dict(zip(names, hashes, strict=True))):
        return False
    if about["front"] != hashlib.sha256((folder / FRONT).read_bytes()).hexdigest():
        return False
    store = LocalStore(folder, read_only=True)
    lists = [np.asarray(zarr.open_array(store, path=name, mode="r")[:]).tolist() for name in MANIFEST_ARRAYS]
    return lists == [names, hashes]
