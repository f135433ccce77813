"""bfloat16 as docs/format.md says: by plain zarr and the lines of that page, without code of ours."""

from __future__ import annotations

from typing import Any


def own_order(array: Any, stored: Any) -> Any:
    """Cells that plain zarr read from `array`, where it is bfloat16 as its bits in their own order."""
    about = array.attrs["attnlens"]
    if about.get("bits") != "bfloat16" or "encoding" not in about:
        return stored
    assert (stored.dtype, about["encoding"]) == ("uint16", "whole-exponent")
    return stored & 0x8000 | stored >> 1 & 0x3FFF | ((stored ^ stored >> 14) & 1) << 14
