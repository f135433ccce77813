"""Is a packed store's zip the one that was packed? What of it belongs to no file of the store has a hash of its own."""

from __future__ import annotations

import zlib

from attnlens.store.findings import Findings
from attnlens.store.places import Archive, Place
from attnlens.store.tools.copy import PIECE


def check_archive(place: Place, findings: Findings) -> None:
    """Compare each file with the zip's checksum, and the zip's own structure with its hash if `lens pack` made it."""
    if not isinstance(place, Archive):
        return
    for path, size in place.files().items():
        findings.count("packed files")
        try:
            found = 0
            for start in range(0, size, PIECE):
                found = zlib.crc32(place.read(path, start, min(size, start + PIECE)), found)
        except OSError as error:
            findings.add(path, "manifest", f"cannot be read from the zip ({error.strerror or error})")
            continue
        if found != place.checksum(path):
            findings.add(path, "manifest", "does not have the checksum that the zip has for it")
    if problem := place.structure_problem():
        findings.add("", "manifest", problem)
