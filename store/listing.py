"""The captures of a store, a line each."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from attnlens.store.naming import changes_of, label_of
from attnlens.store.reader import open_store


@dataclass(frozen=True, kw_only=True)
class Line:
    """One capture, in short. `model`: its id. `changes`: its adapters and hooks, as a model's name has them."""

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

    Raises:
        StoreError: it is not a store, is damaged, or has another format version.
    """
    return [
        Line(
            id=capture.id,
            status=capture.status,
            n_prompt=capture.n_prompt,
            n_token=capture.n_token,
            model=capture.metadata.model.id,
            label=label_of(capture.metadata) or None,
            changes=changes_of(capture.metadata.model),
            prompt=capture.metadata.prompt,
            completion=capture.metadata.completion,
        )
        for capture in open_store(path)
    ]
