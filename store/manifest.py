"""What proves that a store is whole: sha256 of every file, of the list of files, and of the metadata documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attnlens.schemas.version import NAMESPACE
from attnlens.store.descriptions import ours
from attnlens.store.digests import DIGESTS
from attnlens.store.files import PARTIAL, walk
from attnlens.store.places import Place
from attnlens.store.places.place import GROUP_DOCUMENT

MANIFEST_ARRAYS = ("manifest_file", "manifest_sha256")
PROOF_ARRAYS = (*MANIFEST_ARRAYS, DIGESTS)
"""Arrays about the files of a store, which every tool that makes one makes anew."""
PIECE = 1 << 24
THREADS = 4
"""hashlib lets other threads run, so files are hashed side by side."""


def listed(folder: Path) -> list[str]:
    """Files of a capture's folder that its manifest covers, relative to the folder, sorted."""
    return covered(name for name, _ in walk(folder))


def covered(files: Iterable[str]) -> list[str]:
    """Those of a capture's files that its manifest covers, sorted."""
    own = tuple(f"{name}/" for name in MANIFEST_ARRAYS)
    return sorted(
        name for name in files if name != GROUP_DOCUMENT and not name.startswith(own) and not name.endswith(PARTIAL)
    )


def file_hash(path: Path) -> str:
    """Sha256 of a file's bytes, as a hex digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place_hash(place: Place, path: str) -> str:
    """The same of a file at a place, read piece by piece."""
    digest, size = hashlib.sha256(), place.size(path)
    for start in range(0, size, PIECE):
        digest.update(place.read(path, start, min(size, start + PIECE)))
    return digest.hexdigest()


def file_hashes(folder: Path, names: Iterable[str], known: Mapping[str, str] | None = None) -> list[str]:
    """Sha256 of each of the files `names` in `folder`; of those in `known` it was made before."""
    with ThreadPoolExecutor(THREADS, "attnlens-hash") as pool:
        return list(pool.map(lambda name: (known or {}).get(name) or file_hash(folder / name), names))


def manifest_hash(files: Mapping[str, str]) -> str:
    """Sha256 over the lines "path NUL sha256 newline", sorted by path."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def document_digest(document: Mapping[str, Any]) -> str:
    """Sha256 of a zarr.json: canonical JSON (sorted keys, no spaces, ASCII) with our `digest` left out."""
    attributes = dict(document["attributes"])
    attributes[NAMESPACE] = {key: value for key, value in attributes[NAMESPACE].items() if key != "digest"}
    text = json.dumps({**document, "attributes": attributes}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def has_digest(document: Mapping[str, Any]) -> bool:
    """Whether a zarr.json of ours has the digest that it states, or states none."""
    stated = ours(document.get("attributes")).get("digest")
    return stated is None or stated == document_digest(document)
