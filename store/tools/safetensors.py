"""`lens export run.zarr run.safetensors`: the numbers of a store as tensors, bit for bit, for torch, JAX, numpy, Rust.

The library writes a file from arrays that are whole in memory, so the header (a length, JSON, then cell after cell) is
written here, as https://github.com/huggingface/safetensors#format has it, and the cells go to their places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.version import NAMESPACE
from attnlens.store.bfloat16 import BFLOAT16
from attnlens.store.lists import whole
from attnlens.store.named import NamedArray
from attnlens.store.reader import open_store
from attnlens.store.tools.exports import ExportReport, blocks, chosen, document, known_arrays, report_of
from attnlens.store.tools.output import new_file
from attnlens.store.tools.raw import place_raw, reserve

TYPES = {"bool": "BOOL", "uint8": "U8", "int32": "I32", "float16": "F16", BFLOAT16: "BF16", "float32": "F32"}
HEADER_BYTES = 100_000_000
"""The largest header that the library reads."""
ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """An array, and where in the file its cells lie, counted from the end of the header."""

    name: str
    array: NamedArray
    start: int
    stop: int


def export_safetensors(
    store: str | PathLike[str],
    output: str | PathLike[str],
    *,
    captures: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the numbers of captures as tensors "0000/attention_weight", texts and metadata into the header.

    bfloat16 stays what it is, 8-bit square roots are float16. What is absent is NaN or -1, as in the store.

    Args:
        store: The store.
        output: The file.
        captures: Which captures, all if empty.
        overwrite: Replace a file that is there.
        progress: Where arrays are counted.

    Raises:
        AbsentError: there is no such capture.
        InputError: something is at `output`, or there are more texts than a header holds.
        StoreError: a chunk is damaged, or the disk refuses.
    """
    progress, opened, path = progress or Silent(), open_store(store), Path(output)
    there = chosen(opened, captures)
    about = {"format": "np", NAMESPACE: document(whole(opened.place, opened.metadata))}
    arrays: dict[str, NamedArray] = {}
    for capture in there:
        about[capture.id] = document(capture.metadata)
        for array in known_arrays(capture):
            if array.kind == "string":
                about[f"{capture.id}/{array.name}"] = _texts(array)
            else:
                arrays[f"{capture.id}/{array.name}"] = array
    tensors = _places(arrays)
    header = _header(tensors, about)
    progress.stage("exporting", len(tensors), "arrays")
    with new_file(path, overwrite=overwrite) as temporary, temporary.open("x+b") as file:
        _write(file, header, tensors, progress)
    progress.end()
    return report_of(path, there)


def _write(file: BinaryIO, header: bytes, tensors: Sequence[_Tensor], progress: Progress) -> None:
    size = len(header) + max((tensor.stop for tensor in tensors), default=0)
    reserve(file, size)
    file.seek(0)
    file.write(header)
    file.flush()
    for tensor in tensors:
        place_raw(tensor.array, _stored(tensor.array), file, len(header) + tensor.start)
        progress.advance()


def _places(arrays: dict[str, NamedArray]) -> list[_Tensor]:
    """The tensors without gaps, those with large numbers first, so that each begins where its numbers may."""
    found, at = [], 0
    for name, array in sorted(arrays.items(), key=lambda item: (-_item(item[1]), item[0])):
        size = _item(array) * math.prod(array.shape)
        found.append(_Tensor(name=name, array=array, start=at, stop=at + size))
        at += size
    return found


def _item(array: NamedArray) -> int:
    return np.dtype(_stored(array)).itemsize


def _stored(array: NamedArray) -> str:
    return "uint16" if array.kind == BFLOAT16 else array.kind


def _header(tensors: Sequence[_Tensor], about: dict[str, str]) -> bytes:
    """The length of the JSON, the JSON, and spaces up to where numbers may begin."""
    listed: dict[str, object] = {"__metadata__": about}
    for tensor in tensors:
        dtype = TYPES.get(tensor.array.kind)
        if dtype is None:
            raise StoreError(f"{tensor.array.path}: dtype {tensor.array.kind} is none that the format has")
        listed[tensor.name] = {
            "dtype": dtype,
            "shape": tensor.array.shape,
            "data_offsets": (tensor.start, tensor.stop),
        }
    text = json.dumps(listed, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > HEADER_BYTES:
        raise InputError(
            f"texts and metadata take {len(text)} bytes, more than the {HEADER_BYTES} that readers of safetensors "
            "take: choose fewer captures with --capture"
        )
    return len(text).to_bytes(8, "little") + text


def _texts(array: NamedArray) -> str:
    """A list of texts as JSON."""
    return json.dumps([str(text) for _, part in blocks(array) for text in part.tolist()], ensure_ascii=False)
