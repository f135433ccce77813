"""The lists of a store, its index and its batches: in its zarr.json while they are short, else in arrays."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attnlens.schemas.errors import StoreError
from attnlens.schemas.lists import LISTS, ListName
from attnlens.schemas.metadata import (
    BEGINNING,
    Batch,
    BatchPrompt,
    CaptureMetadata,
    IndexEntry,
    ListFiles,
    StoreLists,
    StoreMetadata,
)
from attnlens.schemas.validate import LIST_FOLDER, batch_problems
from attnlens.store.files import PARTIAL, clean
from attnlens.store.list_arrays import ListArrays, Values, write_list
from attnlens.store.naming import changes_of, label_of
from attnlens.store.places import Folder, Place
from attnlens.store.places.json_text import parse_object

INLINE_BYTES = 1 << 18
"""A list of more JSON than this is kept in arrays, since every reader fetches the zarr.json whole."""
_HALF = re.compile(rf"(index|batches)\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
_INDEX = tuple(column.name for column in LISTS["index"])


def entry_of(about: CaptureMetadata) -> IndexEntry:
    """What the index says of a capture."""
    same = {name: getattr(about, name) for name in ("id", "prompt_id", "status", "n_prompt", "n_token", "digest")}
    return IndexEntry(
        **same,
        prompt=beginning(about.prompt),
        completion=beginning(about.completion),
        model=about.model.id,
        label=label_of(about) or None,
        changes=changes_of(about.model),
    )


def beginning(text: str) -> str:
    """How a text begins, `…` at the end where there is more of it."""
    return text if len(text) <= BEGINNING else f"{text[: BEGINNING - 1]}…"


def index_of(place: Place, about: StoreMetadata) -> Iterator[IndexEntry]:
    """The entries of the store's index, none if it has none. They may name any capture, planned or not.

    Raises:
        StoreError: it is damaged.
    """
    if about.index is not None or about.lists is None or about.lists.index is None:
        yield from about.index or []
        return
    arrays = ListArrays(place, "index", about.lists.index, len(about.planned))
    for values in arrays.rows(*_INDEX):
        found: dict[str, Any] = dict(zip(_INDEX, values, strict=True))
        optional = {name: found[name] or None for name in ("prompt_id", "digest", "model", "label")}
        try:
            yield IndexEntry.model_validate(found | optional)
        except ValidationError as error:
            first = error.errors()[0]
            told = f"{found['id'][:20]!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise _refused(place, about.lists.index, told) from None


def prompt_ids_of(place: Place, about: StoreMetadata) -> dict[str, str | None]:
    """Capture → id of its prompt, for the captures that the index tells of.

    Raises:
        StoreError: the index is damaged.
    """
    if about.index is not None or about.lists is None or about.lists.index is None:
        return {entry.id: entry.prompt_id for entry in about.index or []}
    arrays = ListArrays(place, "index", about.lists.index, len(about.planned))
    return {name: prompt_id or None for name, prompt_id in arrays.rows("id", "prompt_id")}


def batches_of(place: Place, about: StoreMetadata) -> list[Batch]:
    """The prompts that were given together.

    Raises:
        StoreError: the record of them is damaged.
    """
    if about.lists is None or about.lists.batches is None:
        return about.batches
    arrays = ListArrays(place, "batches", about.lists.batches, len(about.planned))
    prompts = (
        BatchPrompt(capture=capture, prompt_id=prompt_id, sha256=digest)
        for capture, prompt_id, digest in arrays.rows("capture", "prompt_id", "sha256")
    )
    found: list[Batch] = []
    left = arrays.length("prompt")
    for settings, run, count in arrays.rows("settings", "run", "count"):
        if not 0 <= count <= left:
            raise _refused(place, about.lists.batches, f"a batch has {count} prompts, {left} are left for it")
        left -= count
        try:
            shared = parse_object(settings.encode())
        except ValueError as error:
            raise _refused(place, about.lists.batches, f"settings of batch {len(found)}: {error}") from None
        found.append(Batch(settings=shared, prompts=list(islice(prompts, count)), run=run or None))
    if left:
        raise _refused(place, about.lists.batches, f"{left} prompts belong to no batch")
    found += about.batches  # of an earlier writer, which knows of no other place
    problems = batch_problems((prompt for batch in found for prompt in batch.prompts), set(about.planned))
    if problems:
        raise _refused(place, about.lists.batches, problems[0])
    return found


def whole(place: Place, about: StoreMetadata) -> StoreMetadata:
    """The metadata of a store with its batches, and without its index: what copies of it in other formats say."""
    return about.model_copy(update={"batches": batches_of(place, about), "index": None, "lists": None})


def listed(about: StoreMetadata) -> list[ListFiles]:
    """The lists that are in arrays."""
    lists = about.lists or StoreLists()
    return [one for one in (lists.index, lists.batches) if one is not None]


def with_index(about: StoreMetadata, entries: Sequence[IndexEntry] | None) -> StoreMetadata:
    """With another index, None for none."""
    return about.model_copy(update={"index": entries, "lists": _without(about, "index")})


def with_batches(about: StoreMetadata, batches: Sequence[Batch]) -> StoreMetadata:
    """With other batches."""
    return about.model_copy(update={"batches": batches, "lists": _without(about, "batches")})


def _without(about: StoreMetadata, kind: ListName) -> StoreLists | None:
    return about.lists and about.lists.model_copy(update={kind: None})


def place_lists(root: Path, about: StoreMetadata) -> StoreMetadata:
    """The metadata as they are written: lists that are too long for a zarr.json are in arrays when this returns.

    Raises:
        OSError: the disk refuses.
    """
    if about.index is not None and _is_long(entry.model_dump(mode="json") for entry in about.index):
        listed = write_list(root, "index", _index_columns(about.index))
        about = _moved(about, index=listed)
    if about.batches and _is_long(batch.model_dump(mode="json") for batch in about.batches):
        listed = write_list(root, "batches", _batch_columns(batches_of(Folder(root), about)))
        about = _moved(about, batches=listed)
    return about


def _moved(about: StoreMetadata, **listed: ListFiles) -> StoreMetadata:
    lists = (about.lists or StoreLists()).model_copy(update=listed)
    empty: dict[str, Any] = {"index": None} if "index" in listed else {"batches": []}
    return about.model_copy(update={"lists": lists, **empty})


def remove_lists(root: Path, about: StoreMetadata) -> None:
    """Delete the arrays of lists that the store's zarr.json no longer names, and those of which a half was written."""
    named = {one.folder for one in listed(about)}
    with suppress(OSError):  # what stays is found by the next writer
        for entry in root.iterdir():
            ours = LIST_FOLDER.fullmatch(entry.name) or _HALF.fullmatch(entry.name)
            if ours and entry.name not in named and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)


def _is_long(entries: Iterable[Any]) -> bool:
    """Whether a list has more JSON than a zarr.json should: looked at no further than that."""
    size = 0
    for entry in entries:
        size += len(json.dumps(entry, indent=1))
        if size > INLINE_BYTES:
            return True
    return False


def _index_columns(entries: Sequence[IndexEntry]) -> dict[str, Values]:
    return {name: [_cell(getattr(entry, name)) for entry in entries] for name in _INDEX}


def _batch_columns(batches: Sequence[Batch]) -> dict[str, Values]:
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    return {
        "capture": [prompt.capture for prompt in prompts],
        "prompt_id": [_cell(prompt.prompt_id) for prompt in prompts],
        "sha256": [prompt.sha256 for prompt in prompts],
        "settings": [json.dumps(clean(batch.settings), allow_nan=False) for batch in batches],
        "run": [_cell(batch.run) for batch in batches],
        "count": [len(batch.prompts) for batch in batches],
    }


def _cell(value: Any) -> Any:
    return "" if value is None else clean(value)


def _refused(place: Place, about: ListFiles, reason: str) -> StoreError:
    return StoreError(f"{place}: {about.folder}: {' '.join(reason.split())}; run `lens verify`")
