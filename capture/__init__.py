"""The GPU stage: model → taps and lenses → store writer.

from attnlens.capture import capture, capture_many
capture(model, tokenizer, "Who is Bob's sister?", "run.zarr")
capture_many(model, tokenizer, ["Who is Bob's sister?", "Why is the sky blue?"], "many.zarr")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attnlens.capture.extra import require_capture_extra

if TYPE_CHECKING:
    from attnlens.capture.batch.many import ManyReport, capture_many
    from attnlens.capture.engine import CaptureReport, capture
    from attnlens.capture.settings import Settings

require_capture_extra()

__all__ = ["CaptureReport", "ManyReport", "Settings", "capture", "capture_many"]

_HOMES = {"CaptureReport": "engine", "capture": "engine", "Settings": "settings"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `attnlens.capture.extra` and the like cost no import of torch.
    if name in __all__:
        home = import_module(f"attnlens.capture.{_HOMES.get(name, 'batch.many')}")
        return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
