"""What a capture must have that is not finished: a file that is missing is absent, it does not stand for fill values.

A finished capture has a manifest that tells. Of another the rule is the writer's: every chunk of what was committed is
stored, also one that holds fill values only.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from attnlens.store.chunks import Selection, regions

if TYPE_CHECKING:
    from attnlens.store.named import NamedArray
    from attnlens.store.reader import Capture

LANES = {"layer", "head", "kv_head"}
"""Axes of which a writer leaves out what a model does not have. In committed rows of such arrays no fill value may
stand, and that is looked at where they are read.
"""
FREE = frozenset({"model_probability", "manifest_file", "manifest_sha256", "chunk_sha256"})
"""The model's output need not have been computed, and the others belong to finished captures."""
MOST = 4096
"""So many files of one read are looked for."""


def missing_file(capture: Capture, array: NamedArray, selection: Selection | None = None) -> str | None:
    """Key of the first file that must be there and is not, as "c/0"; None if all are, or if that cannot be told.

    Args:
        capture: The capture.
        array: One of its arrays.
        selection: Which committed cells are read; None for all there are.
    """
    if not capture.committed or capture.sealed or capture.metadata.crop is not None or not _told(array):
        return None
    if array.axes == ("entry",):
        return _missing_entries(capture, array)
    keys = _keys(capture, array, array.committed_cells() if selection is None else selection)
    return next((key for key in keys if not _exists(capture, array, key)), None)


def _told(array: NamedArray) -> bool:
    return array.name not in FREE and array.known and (len(array.axes) == 1 or not LANES & set(array.axes))


def _keys(capture: Capture, array: NamedArray, selection: Selection) -> list[str]:
    if array.axes == ("byte",):  # as long as the tokens' bytes may become
        stop = int(np.max(capture["token_byte_offset"][:], initial=0))
        part = selection[0]
        selection = (
            slice(part.start, min(part.stop, stop), part.step) if isinstance(part, slice) else part[part < stop],
        )
    blocks = itertools.islice(regions(array.zarr, selection, array.files), MOST)
    return [array.zarr.metadata.encode_chunk_key(block) for block in blocks]


def _missing_entries(capture: Capture, array: NamedArray) -> str | None:
    """The vocabulary grows; how long it is, its files tell: there is a first one, none is left out, and there is a text
    for every id, since texts are written first.
    """
    count = -(-array.zarr.shape[0] // array.files[0])
    wanted = 1
    if array.name == "vocabulary_text":
        ids = capture["vocabulary_id"]
        wanted = max(1, sum(_exists(capture, ids, f"c/{number}") for number in range(count)))
    there = [_exists(capture, array, f"c/{number}") for number in range(count)]
    last = max((number + 1 for number, exists in enumerate(there) if exists), default=0)
    return next((f"c/{number}" for number in range(max(wanted, last)) if not there[number]), None)


def _exists(capture: Capture, array: NamedArray, key: str) -> bool:
    return capture.place.exists(f"{array.path}/{key}")
