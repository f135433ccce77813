"""The GPU stage: model → taps and lenses → store writer.

from attnlens.capture import capture
capture(model, tokenizer, "Who is Bob's sister?", "run.zarr")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnlens.capture.engine import CaptureReport, capture

__all__ = ["CaptureReport", "capture"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the parts that need no torch (capture.extra) can be imported without it.
    if name in __all__:
        from attnlens.capture import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
