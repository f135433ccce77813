"""From exceptions of the disk, zarr and its codecs to one line that says what is wrong and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from zarr.errors import BaseZarrError

from attnlens.schemas.errors import AttnlensError, StoreError
from attnlens.store.durable import FlushError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

DECODE_ERRORS = (
    BaseZarrError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    OSError,
    OverflowError,
    MemoryError,
    AssertionError,
)
"""What zarr and its codecs raise on damaged bytes."""


def write_error(error: BaseException, store: Path, committed: int) -> AttnlensError:
    """What the user is told when writing to `store` failed after `committed` rows."""
    if isinstance(error, AttnlensError):
        return error
    kept = f"{committed} rows are kept" if committed else "nothing was kept"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return StoreError(f"disk full while writing {store}: {kept}; free some space and capture again")
    if isinstance(error, FlushError):
        return flush_failed(error, store)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return StoreError(f"cannot write {store}: {reason}; {kept}")


def flush_failed(error: FlushError, path: Path) -> StoreError:
    """The disk took bytes and then could not keep them, so that nobody knows which are there."""
    return StoreError(
        f"cannot write {path}: the disk did not keep what was written ({error.strerror}); check the disk, do not trust "
        "what was being written there, and write it again"
    )


def damaged(array: str, chunk: str | None, error: BaseException | None = None, reason: str = "") -> StoreError:
    """A chunk that cannot be read. `array` as "0000/attention_weight", `chunk` as "c/0/0/3/0"."""
    where = f"chunk {chunk} is damaged" if chunk else "damaged"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error or "")
    why = reason or " ".join(said.split()) or type(error).__name__
    return StoreError(f"{array}: {where} ({why}); run `lens verify`, and copy the store again or capture again")
