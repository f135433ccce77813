"""`lens export run.zarr run.npz`: the arrays of a store for numpy, "0000/attention_weight" and so on. No pickles."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import StoreError
from attnlens.store.bfloat16 import BFLOAT16
from attnlens.store.descriptions import default_limits
from attnlens.store.lists import whole
from attnlens.store.named import NamedArray
from attnlens.store.reader import open_store
from attnlens.store.tools.exports import NUL, NUL_SIGN, ExportReport, blocks, chosen, document, known_arrays, report_of
from attnlens.store.tools.output import new_file
from attnlens.store.tools.raw import write_raw

DOCUMENT = "document"
"""Bytes of JSON: what zarr.json says of the store, or of a capture as "0000/document"."""
LEVEL = 1
"""Of deflate: higher ones took three times as long for a few percent."""
TEXT_BYTES = 1 << 30
"""The most that a list of texts may take, of which numpy gives each the room of the longest."""


def export_npz(
    store: str | PathLike[str],
    output: str | PathLike[str],
    *,
    captures: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the arrays of captures as one compressed .npz.

    Numbers have the dtype that a reader sees: bfloat16 is float32, and 8-bit square roots are float16. Texts are
    numpy's unicode. What is absent is NaN or -1, as in the store.

    Args:
        store: The store.
        output: The file.
        captures: Which captures, all if empty.
        overwrite: Replace a file that is there.
        progress: Where arrays are counted.

    Raises:
        AbsentError: there is no such capture.
        InputError: something is at `output`.
        StoreError: a chunk is damaged, a text is absurdly long, or the disk refuses.
    """
    progress, opened, path = progress or Silent(), open_store(store), Path(output)
    there = chosen(opened, captures)
    progress.stage("exporting", sum(len(known_arrays(capture)) for capture in there), "arrays")
    with (
        new_file(path, overwrite=overwrite) as temporary,
        zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive,
    ):
        _write_text(archive, DOCUMENT, document(whole(opened.place, opened.metadata)))
        for capture in there:
            _write_text(archive, f"{capture.id}/{DOCUMENT}", document(capture.metadata))
            for array in known_arrays(capture):
                _write_array(archive, f"{capture.id}/{array.name}", array, temporary.parent)
                progress.advance()
    progress.end()
    return report_of(path, there)


def _write_text(archive: zipfile.ZipFile, name: str, text: str) -> None:
    with _member(archive, name) as out:
        np.lib.format.write_array(out, np.array(text.encode()), allow_pickle=False)


def _write_array(archive: zipfile.ZipFile, name: str, array: NamedArray, folder: Path) -> None:
    with _member(archive, name) as out:
        if array.kind == "string":
            dtype = np.dtype(f"<U{max(1, _longest(array))}")
            _write_header(out, dtype, array.shape)
            for values in _texts(array):
                step = max(1, (1 << 22) // dtype.itemsize)
                for start in range(0, len(values), step):
                    out.write(np.array(values[start : start + step], dtype).tobytes())
            return
        dtype = np.dtype("<f4" if array.kind == BFLOAT16 else array.kind)
        _write_header(out, dtype, array.shape)
        write_raw(array, dtype.str, out, folder)


def _member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that equal stores give equal files
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
    return cast(BinaryIO, archive.open(info, "w", force_zip64=True))


def _write_header(out: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, about)


def _texts(array: NamedArray) -> Iterator[list[str]]:
    values: NDArray[Any]
    for _, values in blocks(array):
        yield [str(text).replace(NUL, NUL_SIGN) for text in values.tolist()]


def _longest(array: NamedArray) -> int:
    """Characters of the longest text.

    Raises:
        StoreError: it would make all of them too large.
    """
    longest = max((max(map(len, part), default=0) for part in _texts(array)), default=0)
    size = 4 * longest * array.shape[0]
    if size > min(TEXT_BYTES, default_limits().read_bytes << 3):
        raise StoreError(
            f"{array.path}: one text has {longest} characters, and numpy gives each of {array.shape[0]} as much room: "
            f"{size} bytes; export to HDF5 or parquet, or if you trust the store, `lens --no-limits`"
        )
    return longest
