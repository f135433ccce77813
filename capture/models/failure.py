"""The libraries' many ways to fail, told in one line."""

from __future__ import annotations

import re


def one_line(error: BaseException, limit: int = 240) -> str:
    """What `error` says, without line breaks and terminal colours, cut at a sentence or at `limit` characters."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    text = re.sub(r"\s+", " ", text).strip()
    if isinstance(error, KeyError):
        text = f"missing key {text}"
    if len(text) <= limit:
        return text.rstrip(".")
    end = text.rfind(". ", 0, limit)
    return text[:end] if end > 40 else text[:limit].rstrip() + " …"
