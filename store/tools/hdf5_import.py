"""`lens import run.h5`: a store again from what `lens export` wrote. The file is a stranger's until it is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from pydantic import ValidationError
from zarr.storage import LocalStore

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.metadata import CaptureMetadata, StoreMetadata
from attnlens.schemas.problems import summary
from attnlens.schemas.validate import CAPTURE_NAME, ArrayDescription, validate_capture, validate_store
from attnlens.schemas.version import FORMAT, NAMESPACE
from attnlens.store.chunks import file_regions
from attnlens.store.descriptions import Limits, check_limits, ours, raw_bytes, read_dtype
from attnlens.store.files import group_document, write_document
from attnlens.store.manifest import MANIFEST_ARRAYS, PROOF_ARRAYS
from attnlens.store.packing import packing_for
from attnlens.store.places.json_text import parse_object
from attnlens.store.processes import without_script
from attnlens.store.reader import ARRAY_NAME
from attnlens.store.tools.hdf5 import (
    ATTRIBUTES,
    CHUNK,
    DOCUMENT,
    SHARD,
    as_texts,
    require_h5py,
)
from attnlens.store.tools.output import new_store
from attnlens.store.tools.rewrite import PACKED_LEVEL
from attnlens.store.tools.seal import seal_capture, seal_store
from attnlens.store.workplace import helping

if TYPE_CHECKING:
    import h5py

DEFLATE_RATIO = 1100
"""Deflate makes at most 1032 bytes of one; a dataset that claims more than this does not hold its cells."""
SMALL = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was made: where, and which captures."""

    path: Path
    captures: list[str]


class _RefusedError(ValueError):
    """Where in the file, and what is wrong there."""


def import_hdf5(
    file: str | PathLike[str],
    output: str | PathLike[str],
    *,
    overwrite: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Make a store of an HDF5 file that `export_hdf5` wrote.

    Args:
        file: The HDF5 file.
        output: The new store, a folder.
        overwrite: Replace a store that is there.
        limits: The largest things that are read.
        progress: Told that it works.

    Raises:
        InputError: `file` is no HDF5 file of ours, or something is at `output`.
        MissingExtraError: h5py is not installed.
        StoreError: what the file holds is damaged or no store, or the disk refuses.
    """
    progress, limits, h5 = progress or Silent(), limits or Limits(), require_h5py()
    source, path = Path(file), Path(output)
    if path.suffix == ".zip":
        raise InputError(f"-o {path}: import writes a folder; `lens pack` makes one file of it")
    if not source.is_file():
        raise InputError(f"{file}: no such file")
    if not h5.is_hdf5(source):
        raise InputError(f"{file} is not an HDF5 file; import takes what `lens export` wrote")
    progress.stage("importing")
    with new_store(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        # HDF5's library crashes on some damaged files: a process of its own, so that the crash becomes a line.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            try:
                with without_script():
                    job = process.submit(convert, source, temporary, limits)
                names = job.result()
            except BrokenProcessPool as error:
                raise StoreError(f"{file} is damaged: HDF5's own library crashed while reading it") from error
    progress.end()
    return ImportReport(path=path, captures=names)


def convert(source: Path, root: Path, limits: Limits) -> list[str]:
    """Fill the folder `root`, in this process; returns the names of the captures.

    Raises:
        StoreError: what the file holds is damaged, or no store.
    """
    try:
        with helping(root), require_h5py().File(source, "r") as opened:
            return _import_all(opened, root, limits)
    except _RefusedError as error:
        raise StoreError(f"{source}: {error}") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise StoreError(f"{source} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _import_all(file: h5py.File, root: Path, limits: Limits) -> list[str]:
    if file.attrs.get("format") != FORMAT:
        raise _RefusedError(f"not an attnlens export: its attribute format is not {FORMAT!r}")
    attributes = _document(file)
    problems = validate_store(attributes)
    if problems:
        raise _RefusedError(summary(problems))
    about = StoreMetadata.model_validate(attributes[NAMESPACE])
    groups = {name: _own(file, name) for name in file if name != DOCUMENT}
    for name, group in groups.items():
        if not CAPTURE_NAME.fullmatch(name) or name not in about.planned or not hasattr(group, "keys"):
            raise _RefusedError(f"{name!r} is no capture of the store")
    for name, group in sorted(groups.items()):
        _import_capture(group, root, name, limits)
    seal_store(root, about.model_copy(update={"lists": None}))  # a store's own, which the file does not have
    return sorted(groups)


def _import_capture(group: h5py.Group, root: Path, name: str, limits: Limits) -> None:
    attributes = _document(group)
    texts = attributes.pop("texts", None)
    try:
        about = CaptureMetadata.model_validate(attributes.get(NAMESPACE))
    except ValidationError as error:
        first = error.errors()[0]
        raise _RefusedError(f"{name}/{DOCUMENT}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if about.id != name:
        raise _RefusedError(f"{name}/{DOCUMENT} is about capture {about.id}")
    datasets = {key: _own(group, key) for key in group if key not in (DOCUMENT, *PROOF_ARRAYS)}
    described = {key: _describe(dataset, f"{name}/{key}", limits) for key, dataset in datasets.items()}
    complete = about.status == "complete"
    made_here = dict.fromkeys(MANIFEST_ARRAYS, ArrayDescription(shape=(0,), dtype="string", axes=("file",), chunk=(1,)))
    problems = validate_capture(attributes, {**described, **(made_here if complete else {})}, where=name)
    if problems:
        raise _RefusedError(summary(problems))
    (root / name).mkdir()
    store = LocalStore(root)
    for key, dataset in datasets.items():
        exact = texts.get(key, {}) if isinstance(texts, Mapping) else {}
        _import_array(dataset, store, f"{name}/{key}", described[key], exact)
    others = {key: value for key, value in attributes.items() if key != NAMESPACE}
    if complete:
        seal_capture(root, about, others)
        return
    values = about.model_dump(mode="json", exclude={"digest"})
    write_document(root / name, group_document({**others, NAMESPACE: values}))


def _import_array(
    dataset: h5py.Dataset, store: LocalStore, path: str, found: ArrayDescription, exact: Mapping[str, str]
) -> None:
    text = found.dtype == "string"
    name = "string" if text else str(dataset.dtype.name)
    packing = packing_for(path.rpartition("/")[2], name, sharded=found.shard is not None)
    array = zarr.create_array(
        store,
        name=path,
        shape=found.shape,
        dtype=str if text else dataset.dtype,
        chunks=found.chunk,
        shards=found.shard,
        filters=packing.filters(),
        compressors=packing.compressors(found.chunk, 1 if text else dataset.dtype.itemsize, PACKED_LEVEL),
        fill_value="" if text else dataset.fillvalue,
        attributes=_json(dataset.attrs.get(ATTRIBUTES, "{}"), path),
        dimension_names=found.axes,
        config={"write_empty_chunks": False},
    )
    for region in file_regions(found.shape, found.shard or found.chunk):
        values = dataset[region]
        if text:
            first, listed = region[0].start, as_texts(values)
            listed = [str(exact.get(str(first + place), value)) for place, value in enumerate(listed)]
            values = np.asarray(listed, dtype=np.dtypes.StringDType())
        array[region] = values


def _describe(dataset: h5py.Dataset, path: str, limits: Limits) -> ArrayDescription:
    """The array that a dataset will be, if it is one that may be read."""
    if not ARRAY_NAME.fullmatch(path.split("/", 1)[1]) or not hasattr(dataset, "dtype"):
        raise _RefusedError(f"{path!r} is no array")
    if dataset.external or dataset.is_virtual:
        raise _RefusedError(f"{path} keeps its cells in another file, which is never read")
    text = require_h5py().check_string_dtype(dataset.dtype) is not None
    if not text and dataset.dtype.kind not in "biuf":
        raise _RefusedError(f"{path} has dtype {dataset.dtype}, expected numbers or text")
    axes = tuple(label or None for label in (dim.label for dim in dataset.dims))
    if dataset.ndim == 1 and dataset.is_scale:
        axes = (path.split("/", 1)[1],)
    shard = dataset.attrs.get(SHARD)
    attributes = ours(_json(dataset.attrs.get(ATTRIBUTES, "{}"), f"{path}: {ATTRIBUTES}"))
    try:
        dtype = "string" if text else read_dtype(str(dataset.dtype), attributes)
    except ValueError as error:
        raise _RefusedError(f"{path}: {error}") from error
    found = ArrayDescription(
        shape=tuple(map(int, dataset.shape)),
        dtype=dtype,
        axes=axes,
        chunk=_sizes(dataset.attrs.get(CHUNK), f"{path}: {CHUNK}"),
        shard=None if shard is None else _sizes(shard, f"{path}: {SHARD}"),
    )
    try:
        check_limits(found, limits)
    except ValueError as error:
        raise _RefusedError(f"{path}: {error}") from error
    whole = raw_bytes(found.dtype, found.shape)
    if raw_bytes(found.dtype, found.shard or found.chunk) > limits.chunk_bytes:
        raise _RefusedError(f"{path}: one file of it would be more than {limits.chunk_bytes} bytes")
    if found.shard and any(outer % inner for outer, inner in zip(found.shard, found.chunk, strict=True)):
        raise _RefusedError(f"{path}: chunks of {found.chunk} do not fill files of {found.shard}")
    if whole > SMALL and whole > DEFLATE_RATIO * dataset.id.get_storage_size():
        raise _RefusedError(f"{path} claims {whole} bytes and does not hold them")
    return found


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    sizes = np.asarray(value).reshape(-1) if value is not None else np.zeros(0, int)
    if sizes.dtype.kind not in "iu" or not len(sizes) or (sizes < 1).any() or math.prod(sizes.tolist()) > 1 << 62:
        raise _RefusedError(f"{where} is {value!r}, expected sizes")
    return tuple(int(size) for size in sizes)


def _own(group: h5py.Group, name: str) -> Any:
    """What is in the file itself under that name: a link may lead into any file of this machine."""
    if not isinstance(group.get(name, getlink=True), require_h5py().HardLink):
        raise _RefusedError(f"{group.name.rstrip('/')}/{name} is a link, which is never followed")
    return group[name]


def _document(group: h5py.Group) -> dict[str, Any]:
    where = f"{group.name.strip('/')}/{DOCUMENT}".lstrip("/")
    if DOCUMENT not in group:
        raise _RefusedError(f"{where} is missing; import takes what `lens export` wrote")
    dataset = _own(group, DOCUMENT)
    if not hasattr(dataset, "dtype") or dataset.shape != ():
        raise _RefusedError(f"{where} is no text")
    return _json(dataset[()], where)


def _json(text: Any, where: str) -> dict[str, Any]:
    if not isinstance(text, str | bytes):
        raise _RefusedError(f"{where} is no text of JSON")
    try:
        return parse_object(text.encode() if isinstance(text, str) else text)
    except ValueError as error:
        raise _RefusedError(f"{where} is no JSON object ({error})") from error
