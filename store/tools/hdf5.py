"""`lens export run.zarr run.h5`: a store as one HDF5 file that MATLAB, Julia, R and plain h5py read. Nothing is lost.

Every capture is a group, every array a dataset of the same name, shape and dtype, its axes are dimension scales.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from attnlens.progress import Progress, Silent
from attnlens.schemas.version import FORMAT, NAMESPACE
from attnlens.store.chunks import file_regions, grid, read
from attnlens.store.descriptions import ours
from attnlens.store.files import clean
from attnlens.store.lists import whole
from attnlens.store.manifest import PROOF_ARRAYS
from attnlens.store.named import NamedArray
from attnlens.store.reader import Capture, open_store
from attnlens.store.tools.exports import NUL, NUL_SIGN, ExportReport, chosen, report_of, require
from attnlens.store.tools.output import new_file

if TYPE_CHECKING:
    import h5py

DOCUMENT = "document"
"""Dataset of JSON text: what the zarr.json of a capture or the store says. An attribute would hold 64 KiB at most."""
CHUNK, SHARD, ATTRIBUTES = "zarr_chunk", "zarr_shard", "zarr_attributes"
"""Attributes of a dataset from which the array is made again as it was."""
GZIP_LEVEL = 4


def require_h5py() -> Any:
    """The module h5py.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("h5py", "HDF5", "hdf5")


def export_hdf5(
    store: str | PathLike[str],
    output: str | PathLike[str],
    *,
    captures: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write captures of a store to one HDF5 file.

    Args:
        store: The store.
        output: The file.
        captures: Which captures, all if empty.
        overwrite: Replace a file that is there.
        progress: Where arrays are counted.

    Raises:
        AbsentError: there is no such capture.
        InputError: something is at `output`.
        MissingExtraError: h5py is not installed.
        StoreError: a chunk is damaged, or the disk refuses.
    """
    progress, h5 = progress or Silent(), require_h5py()
    opened = open_store(store)
    there = chosen(opened, captures)
    progress.stage("exporting", sum(len(_names(capture)) for capture in there), "arrays")
    path = Path(output)
    with new_file(path, overwrite=overwrite) as temporary, h5.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        about = whole(opened.place, opened.metadata).model_dump(mode="json", exclude={"digest", "index", "lists"})
        about["planned"] = [capture.id for capture in there] if captures else opened.metadata.planned
        _write_document(file, {NAMESPACE: about})
        for capture in there:
            _write_capture(file.create_group(capture.id), capture, progress)
    progress.end()
    return report_of(path, there)


def _names(capture: Capture) -> list[str]:
    """All arrays but the manifest, which is about the files of a store."""
    return [name for name in capture.names if name not in PROOF_ARRAYS]


def _write_capture(group: h5py.Group, capture: Capture, progress: Progress) -> None:
    texts: dict[str, dict[str, str]] = {}
    names = _names(capture)
    for name in names:
        found = _write_array(group, capture[name])
        if found:
            texts[name] = found
        progress.advance()
    for name in names:
        _name_axes(group, capture[name])
    attributes = dict(capture.document["attributes"])
    about = capture.metadata.model_dump(mode="json")
    _write_document(group, {**attributes, NAMESPACE: about, "texts": texts})


def _write_array(group: h5py.Group, array: NamedArray) -> dict[str, str]:
    """Write one dataset, file by file; returns the texts with a NUL, by their place in the list."""
    h5, old = require_h5py(), array.zarr
    array.check_there()
    text = array.kind == "string"
    dataset = group.create_dataset(
        array.name,
        shape=old.shape,
        dtype=h5.string_dtype("utf-8") if text else old.dtype,
        fillvalue=None if text else old.fill_value,
        **({} if 0 in old.shape else _filters(old, text)),
    )
    attributes = dict(old.attrs.asdict())
    for name, value in ours(attributes).items():
        if isinstance(value, str | int | float):
            dataset.attrs[name] = clean(value)
    dataset.attrs[ATTRIBUTES] = json.dumps(attributes)
    dataset.attrs[CHUNK] = old.chunks
    if old.shards is not None:
        dataset.attrs[SHARD] = old.shards
    exact: dict[str, str] = {}
    for region in file_regions(old.shape, grid(old)):
        values = read(old, region)
        if text:
            flat = [str(value) for value in values.tolist()]
            exact |= {str(region[0].start + i): value for i, value in enumerate(flat) if NUL in value}
            dataset[region] = [value.replace(NUL, NUL_SIGN) for value in flat]
        else:
            dataset[region] = values
    return exact


def _filters(array: zarr.Array[Any], text: bool) -> dict[str, Any]:
    chunk = tuple(min(size, length) for size, length in zip(array.chunks, array.shape, strict=True))
    return {"chunks": chunk} if text else {"chunks": chunk, "compression": GZIP_LEVEL, "shuffle": True}


def _name_axes(group: h5py.Group, array: NamedArray) -> None:
    """Name the dimensions of a dataset, and attach the coordinates that there are as dimension scales."""
    dataset = group[array.name]
    if array.axes == (array.name,):
        dataset.make_scale(array.name)
        return
    for number, axis in enumerate(array.axes):
        dataset.dims[number].label = axis
        if axis in group:
            dataset.dims[number].attach_scale(group[axis])


def _write_document(group: h5py.Group, document: dict[str, Any]) -> None:
    group.create_dataset(DOCUMENT, data=json.dumps(document, ensure_ascii=True), dtype=require_h5py().string_dtype())


def as_texts(values: np.ndarray[Any, Any]) -> list[str]:
    """Strings as h5py reads them, as text.

    Raises:
        ValueError: they are no UTF-8.
    """
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
