"""The parts of the page, as they lie in the package: built from `render/js` by `make viewer`."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
}
"""Files of the page and what they are."""


@cache
def asset(name: str) -> bytes:
    """One of the page's files."""
    return (FOLDER / name).read_bytes()


def digest(text: bytes) -> str:
    """How a Content-Security-Policy names a script or style by what it is."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
