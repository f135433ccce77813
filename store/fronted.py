"""Reading a capture far away by its front: what the front has a copy of costs no request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from attnlens.schemas.version import NAMESPACE
from attnlens.store.files import group_document
from attnlens.store.front import FRONT_BYTES, End, decode
from attnlens.store.manifest import document_digest
from attnlens.store.places.place import FRONT, Place, join


class Fronted(Place):
    """A store of which one capture is read by its front; all else is asked of the place itself."""

    def __init__(self, place: Place, capture: str, document: dict[str, Any], ends: Mapping[str, End]) -> None:
        """`document`: the capture's zarr.json. `ends`: how files of the capture end, by path in the capture."""
        super().__init__(place.name)
        self.blocking, self.whole = place.blocking, place.whole
        self._place = place
        self._capture = capture
        self._document = document
        self._ends = {join(capture, path): end for path, end in ends.items()}

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        end = self._ends.get(path)
        if end is None:
            return self._place.read(path, start, stop)
        low = max(0, end.size + start) if start < 0 else min(start, end.size)
        high = end.size if stop is None else max(low, min(stop, end.size))
        known = end.size - len(end.data)
        if low < known:
            return self._place.part(path, low, high, end.size)
        return end.data[low - known : high - known]

    def size(self, path: str) -> int:
        """See `Place.size`."""
        end = self._ends.get(path)
        return self._place.size(path) if end is None else end.size

    def files(self, under: str = "") -> dict[str, int]:
        """See `Place.files`."""
        return self._place.files(under)

    def document(self, folder: str = "") -> dict[str, Any]:
        """See `Place.document`."""
        return self._document if folder == self._capture else self._place.document(folder)


def fronted(place: Place, capture: str) -> Place:
    """The place to read a capture from: by its front, where it has one and files cost a request each.

    The copy of the capture's zarr.json in the store's own is taken if the front is the one that it tells of: then it is
    not older than the capture. What is wrong is left to whoever reads the files themselves.
    """
    if not place.apart:
        return place
    try:
        document = _copy(place.document(), capture)
        found = None if document is None else _front(place, capture, document)
        if document is None or (found is None and _stated(document) is not None):
            document = place.document(capture)
            found = _front(place, capture, document)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return place
    return place if found is None else Fronted(place, capture, document, found)


def _copy(root: Mapping[str, Any], capture: str) -> dict[str, Any] | None:
    """The zarr.json of a capture as the store's own has it, None if it has none that has its digest."""
    copies = root.get("consolidated_metadata")
    if not copies or capture not in copies["metadata"]:
        return None
    prefix = f"{capture}/"
    arrays = {name.removeprefix(prefix): text for name, text in copies["metadata"].items() if name.startswith(prefix)}
    document = group_document(copies["metadata"][capture]["attributes"], arrays)
    digests = [entry["digest"] for entry in root["attributes"][NAMESPACE]["index"] if entry["id"] == capture]
    return document if [document_digest(document)] == digests else None


def _front(place: Place, capture: str, document: Mapping[str, Any]) -> dict[str, End] | None:
    """The front of which the zarr.json of a complete capture tells; None if there is none, or another."""
    stated, path = _stated(document), join(capture, FRONT)
    if stated is None or not place.exists(path) or place.size(path) > FRONT_BYTES:
        return None
    data = place.read(path)
    return decode(data) if hashlib.sha256(data).hexdigest() == stated else None


def _stated(document: Mapping[str, Any]) -> str | None:
    about = document["attributes"][NAMESPACE]
    stated = about.get("front")
    return stated if about.get("status") == "complete" and isinstance(stated, str) else None
