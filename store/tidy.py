"""What processes that were killed have left inside a store: put right by the next one that writes there.

Only the holder of the store's lock may. No reader looks at what ends in `.partial`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from attnlens.schemas.version import NAMESPACE
from attnlens.store.adopt import adopt
from attnlens.store.durable import flush
from attnlens.store.exchange import put_back
from attnlens.store.files import PARTIAL, read_document, walk
from attnlens.store.lock import LOCK_NAME
from attnlens.store.notices import tell
from attnlens.store.replacement import MARK


def tidy(store: Path, before: Callable[[], object] = lambda: None) -> None:
    """Put back what was taken from its place, and remove what is half-written, each named in a line.

    `before`: called before anything is removed, if anything is.

    Raises:
        OSError: the disk refuses.
    """
    put_back(store)
    left = [*_at_the_top(store), *_in_the_last_capture(store)]
    if not left:
        return
    before()
    flush(store)  # what is removed may be what a capture was before, and the new one not on the disk yet
    for entry in left:
        tell(f"removed {entry}, which a run that was killed had left")
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _at_the_top(store: Path) -> list[Path]:
    return sorted(entry for entry in store.glob(f"*{PARTIAL}") if entry.name not in (LOCK_NAME, MARK))


def _in_the_last_capture(store: Path) -> list[Path]:
    """Half-written files of the capture that was running. Of those before it none are left: this was done then.

    One that was finished and lacks only its zarr.json gets that.
    """
    try:
        folder = store / read_document(store)["attributes"][NAMESPACE]["planned"][-1]
        if read_document(folder)["attributes"][NAMESPACE]["status"] == "complete":
            return []
    except (OSError, ValueError, LookupError, TypeError):
        return []
    adopt([folder])
    return [path for _, path in walk(folder) if path.name.endswith(PARTIAL)]
