"""See what a causal language model looks at, and what it is about to say, at every layer.

`attnlens.open("run.zarr")` opens a store for reading; `attnlens.capture.capture(...)` writes one.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnlens.render.viewer.notebook import Frame
    from attnlens.store.reader import Capture, Store

__all__ = ["__version__", "open"]

__version__ = "0.1.0"


def open(path: str | PathLike[str]) -> Store:
    """Open the store at `path` for reading.

    Raises:
        attnlens.schemas.errors.StoreError: `path` is not a store, is damaged, or has another format version.
    """
    from attnlens.store.reader import open_store

    store = open_store(path)
    store.viewer = _view
    return store


def _view(capture: Capture, state: dict[str, object], height: int) -> Frame:
    """What `Capture.view` shows."""
    from attnlens.render.viewer.notebook import frame

    return frame(capture, state, height)
