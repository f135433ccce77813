"""The captures of a store, a line each."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from attnlens.schemas.metadata import LABEL_LIMIT, IndexEntry
from attnlens.schemas.plain_text import shortened
from attnlens.store.lists import entry_of, index_of
from attnlens.store.reader import open_store

CHANGES_LIMIT = 400
"""Characters of what changed a model that a line has at most."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One capture, in short. `model`: its id. `changes`: its adapters and hooks, as a model's name has them.

    `prompt` and `completion`: how they begin, `…` at the end where there is more.
    """

    id: str
    status: str
    n_prompt: int
    n_token: int
    model: str
    label: str | None
    changes: str
    prompt: str
    completion: str


def listing(path: str | PathLike[str]) -> list[Line]:
    """The captures that have begun in the store at `path`, in order.

    What the store's index tells of a complete capture is taken from there, so that a list of many thousands costs no
    more than a few reads; of others their own metadata are read.

    Raises:
        StoreError: it is not a store, is damaged, or has another format version.
    """
    store = open_store(path)
    ids = store.ids
    known = {entry.id: _line(entry) for entry in index_of(store.place, store.metadata) if _is_told(entry)}
    return [known.get(name) or _line(entry_of(store.open(name).metadata)) for name in ids]


def _is_told(entry: IndexEntry) -> bool:
    """Whether an entry tells all that a line has, and can no longer be stale: a complete capture does not change."""
    return entry.status == "complete" and entry.model is not None


def _line(entry: IndexEntry) -> Line:
    return Line(
        id=entry.id,
        status=entry.status,
        n_prompt=entry.n_prompt,
        n_token=entry.n_token,
        model=entry.model or "",
        label=shortened(entry.label, LABEL_LIMIT) if entry.label else None,
        changes=shortened(entry.changes, CHANGES_LIMIT) if entry.changes else "",
        prompt=entry.prompt,
        completion=entry.completion,
    )
