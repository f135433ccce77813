"""Arrays laid out in a file as they lie in memory, cell after cell, whatever the order in which they are read."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attnlens.store.bfloat16 import BFLOAT16, encode
from attnlens.store.named import NamedArray
from attnlens.store.tools.exports import blocks
from attnlens.store.workplace import SCRATCH

HELD_BYTES = 1 << 26
"""An array of up to so many bytes is laid out in memory, a larger one in an unnamed file beside the result."""
ZEROS = bytes(1 << 20)


def write_raw(array: NamedArray, dtype: str, out: BinaryIO, folder: Path) -> None:
    """Append the cells of an array to `out`, in C order. `folder`: a workplace, for what does not fit in memory.

    Rows of attention lie in files of all layers, and a layer is what comes first here: so a large array is put
    together in a file of its own, and copied from there.

    Raises:
        OSError: the disk refuses.
        StoreError: a chunk is damaged.
    """
    size = np.dtype(dtype).itemsize * int(np.prod(array.shape, dtype=object))
    if size <= HELD_BYTES:
        whole = np.empty(array.shape, dtype)
        for region, values in blocks(array):
            whole[region] = values
        out.write(whole.data.cast("B") if size else b"")
        return
    with tempfile.TemporaryFile(dir=folder, prefix=SCRATCH) as file:  # where that needs a name, it has one for a moment
        reserve(file, size)
        place_raw(array, dtype, file, 0)
        file.seek(0)
        while piece := file.read(len(ZEROS)):
            out.write(piece)


def place_raw(array: NamedArray, dtype: str, file: BinaryIO, start: int) -> None:
    """Put the cells of an array, in C order, at byte `start` of a file that has the room; bfloat16 as uint16: bits.

    Raises:
        StoreError: a chunk is damaged.
    """
    for region, values in blocks(array):
        # Mapped anew for each block, so that what was written does not stay in the process.
        cells = np.memmap(file, dtype, "r+", start, array.shape)
        cells[region] = encode(values) if array.kind == BFLOAT16 and cells.dtype == np.uint16 else values
        del cells


def reserve(file: BinaryIO, size: int) -> None:
    """Make a file `size` bytes long, on the disk: what is mapped must not run out of room later.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    file.seek(0)
    for start in range(0, size, len(ZEROS)):
        file.write(ZEROS[: size - start])
    file.flush()
