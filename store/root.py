"""The store's own zarr.json, and what may be done to the path it is at."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attnlens import __version__
from attnlens.schemas.errors import InputError, Setting, StoreError
from attnlens.schemas.metadata import CaptureMetadata, IndexEntry, StoreMetadata
from attnlens.schemas.problems import summary
from attnlens.schemas.validate import CAPTURE_NAME, LIST_FOLDER, read_store
from attnlens.schemas.version import FORMAT, NAMESPACE
from attnlens.store.files import clean, group_document, read_document, write_document
from attnlens.store.lists import entry_of, index_of, place_lists, remove_lists, with_index
from attnlens.store.lock import LOCK_NAME
from attnlens.store.manifest import document_digest
from attnlens.store.notices import tell
from attnlens.store.places import Folder, Place
from attnlens.store.places.place import GROUP_DOCUMENT

CONSOLIDATED_BYTES = 1 << 17
"""The most that is copied into the store's zarr.json, which every reader fetches whole: some three captures."""


BEGUN = re.compile(rf"{re.escape(LOCK_NAME)}|zarr\.[0-9a-f]{{16}}\.partial")
"""The lock, and a zarr.json that is being written."""
OTHERWISE = (Setting("append=True", "--append"), " to add to it, or ", Setting("overwrite=True", "--overwrite"))
"""What else may be done about a store that is there."""


def is_free(path: Path) -> bool:
    """Whether nothing is at `path`, or a folder in which a writer has not come as far as its first zarr.json."""
    return not path.exists() or (path.is_dir() and all(BEGUN.fullmatch(entry.name) for entry in path.iterdir()))


def check_free(path: Path) -> None:
    """Refuse a path where something is.

    Raises:
        InputError: something is there.
    """
    if not is_free(path):
        raise InputError(f"{path} exists: give another ", Setting("store", "-o"), ", or ", *OTHERWISE)


def replaceable(path: Path) -> None:
    """Refuse to overwrite what is not an attnlens store, or a store folder that holds other things as well.

    Raises:
        InputError: deleting `path` could delete what attnlens never wrote.
    """
    refusal = f"will not overwrite {path}: it is not an attnlens store"
    try:
        attributes = read_document(path).get("attributes", {})
    except (OSError, ValueError):
        raise InputError(f"{refusal}; give another -o") from None
    about = attributes.get(NAMESPACE) if isinstance(attributes, dict) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{refusal}; give another -o")
    for entry in sorted(path.iterdir()):
        folder = CAPTURE_NAME.fullmatch(entry.name) or LIST_FOLDER.fullmatch(entry.name)
        ours = folder and entry.is_dir() and not entry.is_symlink()
        if not ours and entry.name != GROUP_DOCUMENT and not entry.name.endswith(".partial"):
            raise InputError(
                f"will not overwrite {path}: it also holds {entry.name}; move that away, or give another -o"
            )


def next_ids(taken: Iterable[str], count: int) -> list[str]:
    """Names of the next captures' groups: "0000", "0001", …"""
    first = max((int(name) for name in taken if CAPTURE_NAME.fullmatch(name)), default=-1) + 1
    return [f"{number:04d}" for number in range(first, first + count)]


def new_root() -> StoreMetadata:
    """The metadata of a store without captures."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return StoreMetadata(created=created, writer=f"attnlens {__version__}", planned=[])


def root_attributes(path: Place) -> dict[str, Any]:
    """The attributes of the store at a place, of whatever version.

    Raises:
        StoreError: it is not a store of ours, or its metadata is damaged.
    """
    try:
        document = path.document()
    except FileNotFoundError:
        raise StoreError(f"{path} is not a store: it has no zarr.json") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot read zarr.json ({error.strerror or error})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise StoreError(f"{path}: zarr.json is damaged ({error})") from None
    if document.get("zarr_format") != 3 or document.get("node_type") != "group":
        found = f"{document.get('node_type')!r} of Zarr {document.get('zarr_format')!r}"
        raise StoreError(f"{path} is not an attnlens store: its zarr.json describes {found}, expected a Zarr 3 group")
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or NAMESPACE not in attributes:
        raise StoreError(f"{path} is a Zarr group, but not an attnlens store (it has no attribute {NAMESPACE!r})")
    return attributes


def read_root(path: Place) -> StoreMetadata:
    """The metadata of the store at a place.

    Raises:
        StoreError: it is not a store of this version, or its metadata is damaged.
    """
    about, problems = read_store(root_attributes(path))
    if about is None:
        raise StoreError(f"{path}: {summary(problems)}")
    return about


def write_root(path: Path, metadata: StoreMetadata, *, running: bool, keep: bool = False) -> StoreMetadata:
    """Replace the store's zarr.json atomically; the metadata returned has the new digest, and long lists by name only.

    While a capture is `running` nothing is consolidated, because zarr would then not see the arrays that grow.
    `keep`: the lists that the old zarr.json names stay, since it may have to be put back.
    """
    metadata = place_lists(path, metadata)
    values = clean(metadata.model_dump(mode="json", exclude={"digest"}))
    if not any((values["lists"] or {}).values()):
        del values["lists"]
    document = group_document({NAMESPACE: values}, None if running else consolidated(path, metadata.planned))
    values["digest"] = document_digest(document)
    write_document(path, document, durable=True)  # without it the store cannot be opened, nor what it has of old
    if not keep:
        remove_lists(path, metadata)
    return StoreMetadata.model_validate(values)


def consolidated(path: Path, planned: Sequence[str]) -> dict[str, Any] | None:
    """The zarr.json of every capture and array by its path; None if that is too much for one file, or one is damaged.

    A copy for clients that look for it at the root, such as xarray. Our own reader takes that of each capture.
    """
    found: dict[str, Any] = {}
    size = 0
    for name in planned:
        try:
            group = read_document(path / name)
            for file in sorted((path / name).glob(f"*/{GROUP_DOCUMENT}")):
                found[f"{name}/{file.parent.name}"] = read_document(file.parent)
                size += file.stat().st_size
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return None
        found[name] = {**group, "consolidated_metadata": group_document({}, {})["consolidated_metadata"]}
        size += len(json.dumps(found[name]))
        if size > CONSOLIDATED_BYTES:
            return None
    return dict(sorted(found.items()))


def root_entries(
    path: Place, planned: Sequence[str], known: Mapping[str, IndexEntry] | None = None
) -> list[IndexEntry]:
    """The derived index: one entry for each planned capture whose metadata can be read, or that is `known`."""
    entries = []
    for name in planned:
        if known is not None and name in known:
            entries.append(known[name])
            continue
        try:
            about = CaptureMetadata.model_validate(path.document(name)["attributes"][NAMESPACE])
        except (OSError, LookupError, TypeError, ValueError, ValidationError):
            continue
        entries.append(entry_of(about))
    return entries


def current_entries(path: Place, metadata: StoreMetadata, *, changed: Container[str] = ()) -> list[IndexEntry]:
    """What the store's index says of complete captures, but for those that are `changed`, or gone.

    A complete capture stays as it is until somebody takes its entry away, so none of them need be read again. An
    entry of an earlier writer says too little, and an index that is damaged says nothing.
    """
    try:
        entries = list(index_of(path, metadata))
    except StoreError as error:
        tell(f"{error}; the index is made anew from the captures")
        return []
    there = set(path.folders())
    return [
        entry
        for entry in entries
        if entry.status == "complete" and entry.model and entry.id in there and entry.id not in changed
    ]


def indexed(path: Path, metadata: StoreMetadata) -> StoreMetadata:
    """With the whole index: of captures that are not in it their own metadata are read."""
    known = {entry.id: entry for entry in current_entries(Folder(path), metadata)}
    return with_index(metadata, root_entries(Folder(path), metadata.planned, known))
