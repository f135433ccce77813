"""What all exports share: which captures, what is said of them beside the numbers, and the blocks that are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import MissingExtraError
from attnlens.schemas.version import NAMESPACE
from attnlens.store.chunks import Region, file_regions
from attnlens.store.files import clean
from attnlens.store.manifest import PROOF_ARRAYS
from attnlens.store.named import NamedArray
from attnlens.store.reader import Capture, Store

NUL, NUL_SIGN = "\0", "\u2400"
"""Some formats end a text at a NUL: there the sign for it stands. `token_bytes` has the bytes themselves."""
BLOCK_BYTES = 1 << 26
"""A file of a store that holds more than this is read in parts."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: where, how many bytes, which captures. `notes`: what a person should know beside that."""

    path: Path
    bytes: int
    captures: list[str]
    notes: list[str] = field(default_factory=list)


def report_of(path: Path, captures: Sequence[Capture], notes: Sequence[str] = ()) -> ExportReport:
    """The report of a file that is whole and in its place."""
    ids = [capture.id for capture in captures]
    return ExportReport(path=path, bytes=path.stat().st_size, captures=ids, notes=list(notes))


def require(module: str, what: str, extra: str) -> Any:
    """A module of an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingExtraError(f"{what} needs {name}, which is not installed: pip install 'attnlens[{extra}]'") from (
            error
        )


def chosen(store: Store, captures: Sequence[str]) -> list[Capture]:
    """The captures that were asked for, by name or prompt id, each once; all if none was.

    Raises:
        AbsentError: there is no such capture.
        StoreError: the metadata of one are damaged.
    """
    return [store[name] for name in dict.fromkeys(store.find(key) for key in captures or store.ids)]


def known_arrays(capture: Capture) -> list[NamedArray]:
    """The arrays that the format knows, without the manifest, which is about the files of a store."""
    return [capture[name] for name in capture.names if name in capture.specs and name not in PROOF_ARRAYS]


def document(about: Any) -> str:
    """Metadata of a store or a capture as JSON text, in ASCII: what zarr.json says under `attnlens`."""
    exclude = {"digest", "manifest", "index", "lists"}
    return json.dumps({NAMESPACE: clean(about.model_dump(mode="json", exclude=exclude))})


def blocks(array: NamedArray) -> Iterator[tuple[Region, NDArray[Any]]]:
    """The cells of an array, a file or a part of one at a time, each with where it belongs.

    Rows that were not committed are fill values, as everywhere; bfloat16 comes as float32.

    Raises:
        StoreError: a chunk is damaged.
    """
    for region in file_regions(array.shape, _step(array)):
        yield region, array[region]


def _step(array: NamedArray) -> tuple[int, ...]:
    """The shape of a block: a file, or as many of its chunks along the first axis as fit."""
    shape = tuple(min(file, size) for file, size in zip(array.files, array.shape, strict=True))
    chunk = tuple(min(inner, size) for inner, size in zip(array.chunks, shape, strict=True))
    item = max(1, array.zarr.dtype.itemsize)
    if item * int(np.prod(shape, dtype=object)) <= BLOCK_BYTES or 0 in shape:
        return tuple(max(1, size) for size in shape)
    row = item * int(np.prod(chunk, dtype=object))
    return (min(shape[0], max(1, BLOCK_BYTES // row) * chunk[0]), *chunk[1:])
