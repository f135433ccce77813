"""`lens merge`: the captures of many stores in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from attnlens import __version__
from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import InputError
from attnlens.schemas.metadata import StoreMetadata
from attnlens.schemas.version import NAMESPACE
from attnlens.store.files import clean, group_document, write_document
from attnlens.store.manifest import document_digest
from attnlens.store.reader import Store, open_store
from attnlens.store.tools.copy import copy_capture
from attnlens.store.tools.output import new_store
from attnlens.store.tools.seal import seal_store


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """Where the store is, and where each of its captures came from, as "store#id"."""

    path: Path
    captures: dict[str, str]


def merge(
    stores: Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Copy every capture of `stores`, in that order, into one new store. Captures are numbered anew, from 0000.

    A capture's files are copied byte for byte; its zarr.json gets the new number, and so a new digest.

    Args:
        stores: Stores, packed or not; captures that have not begun or hold nothing are copied too.
        output: The new store.
        overwrite: Replace a store that is there.
        progress: Where captures are counted.

    Raises:
        InputError: there is nothing to merge, or something is at `output`.
        StoreError: a store is damaged, or the disk refuses.
    """
    progress = progress or Silent()
    opened = [open_store(store) for store in stores]
    captures = [(store, capture) for store in opened for capture in store]
    if not captures:
        raise InputError("none of the stores holds a capture")
    path, names = Path(output), {}
    if path.suffix == ".zip":
        raise InputError(f"-o {path}: merge writes a folder; `lens pack` makes one file of it")
    progress.stage("merging", len(captures), "captures")
    with new_store(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for number, (store, capture) in enumerate(captures):
            name = f"{number:04d}"
            _copy(store, capture.id, temporary, name)
            names[name] = f"{store.path}#{capture.id}"
            progress.advance()
        created = min(store.metadata.created for store in opened)
        writer = f"attnlens {__version__}"
        seal_store(temporary, StoreMetadata(created=created, writer=writer, planned=list(names)))
    progress.end()
    return MergeReport(path=path, captures=names)


def _copy(store: Store, source: str, root: Path, name: str) -> None:
    """Copy one capture under another number."""
    folder = root / name
    capture = copy_capture(store, source, folder)
    if name == source:
        return
    document = capture.document
    values = clean({**capture.metadata.model_dump(mode="json", exclude={"digest"}), "id": name})
    consolidated = document.get("consolidated_metadata")
    attributes = {**document["attributes"], NAMESPACE: values}
    document = group_document(attributes, consolidated["metadata"] if consolidated else None)
    if capture.sealed:
        values["digest"] = document_digest(document)
    write_document(folder, document)
