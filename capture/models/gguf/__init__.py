"""GGUF files: every key and tensor that changes what is computed is applied, or the file is refused by their names.

Read by tables of our own: transformers' reader drops what it does not know, another part of it in every release.
"""

from __future__ import annotations

from attnlens.capture.models.gguf.file import Header, find_file, read_header
from attnlens.capture.models.gguf.load import check, load, matches, outline, read_gguf

__all__ = ["Header", "check", "find_file", "load", "matches", "outline", "read_gguf", "read_header"]
