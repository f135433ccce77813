"""Are the bytes those that were written? Digests of metadata, the manifest, and whether every chunk decodes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr

from attnlens.progress import Progress
from attnlens.schemas.errors import AttnlensError
from attnlens.store.chunks import file_regions, grid
from attnlens.store.descriptions import ours
from attnlens.store.digests import DIGESTS, Digests, hash_shard, place_of
from attnlens.store.faults import DECODE_ERRORS
from attnlens.store.files import PARTIAL
from attnlens.store.findings import Findings
from attnlens.store.front import FRONT_BYTES, decode
from attnlens.store.manifest import MANIFEST_ARRAYS, covered, has_digest, manifest_hash, place_hash
from attnlens.store.places import Place
from attnlens.store.places.place import FRONT, GROUP_DOCUMENT, join
from attnlens.store.reader import Capture, arrays_of


def check_digest(document: Mapping[str, Any], where: str, findings: Findings) -> None:
    """Does the zarr.json still have the digest that it states?"""
    if ours(document.get("attributes")).get("digest") is None:
        return
    findings.count("digests")
    if not has_digest(document):
        findings.add(where, "manifest", "metadata were changed after they were written: they do not have their digest")


def check_consolidated(place: Place, capture: str, document: Mapping[str, Any], findings: Findings) -> None:
    """Does the group's copy of each array's metadata equal the original?"""
    copies = document.get("consolidated_metadata")
    if not isinstance(copies, Mapping) or not isinstance(copies.get("metadata"), Mapping):
        return
    for name in sorted(set(arrays_of(place, capture)) | set(copies["metadata"])):
        where = f"{capture}/{name}/{GROUP_DOCUMENT}"
        if name not in copies["metadata"]:
            findings.add(where, "metadata", "is not in the capture's consolidated metadata")
            continue
        try:
            same = place.document(join(capture, name)) == copies["metadata"][name]
        except (OSError, ValueError) as error:
            findings.add(where, "metadata", f"cannot be read ({getattr(error, 'strerror', None) or error})")
            continue
        if not same:
            findings.add(where, "metadata", "differs from the capture's consolidated metadata")


def check_manifest(place: Place, capture: Capture, findings: Findings, progress: Progress) -> None:
    """Is every file of a sealed capture there, unchanged, and no other, and does each chunk have its digest?"""
    about, known = capture.metadata, _digests(capture, findings)
    try:
        names, hashes = ([str(text) for text in capture[name][:]] for name in MANIFEST_ARRAYS)
    except AttnlensError as error:
        findings.add(f"{capture.id}/manifest_file", "manifest", f"the manifest cannot be read ({error})")
        return
    expected = dict(zip(names, hashes, strict=True))
    if manifest_hash(expected) != about.manifest:
        _check_manifest_files(place, capture, findings)
    here = [path.removeprefix(f"{capture.id}/") for path in place.files(capture.id)]
    present = set(covered(here))
    for name in sorted(present - expected.keys()):
        findings.add(f"{capture.id}/{name}", "manifest", "is not in the manifest")
    for name in here:
        if name.endswith(PARTIAL):
            findings.add(f"{capture.id}/{name}", "manifest", "is a leftover of a write; delete it")
    progress.stage(f"{capture.id} files", len(expected), "files")
    for name, digest in sorted(expected.items()):
        progress.advance()
        findings.count("files")
        if name not in present:
            findings.add(f"{capture.id}/{name}", "manifest", "is missing")
            continue
        try:
            found = _hash(place, capture, name, known, findings)
        except OSError as error:
            findings.add(f"{capture.id}/{name}", "manifest", f"cannot be read ({error.strerror or error})")
            continue
        if found != digest:
            findings.add(f"{capture.id}/{name}", "manifest", "its bytes are not those that were written")


def _digests(capture: Capture, findings: Findings) -> Digests | None:
    """The digests of chunks, None if there are none that can be used."""
    try:
        return capture.digests()
    except AttnlensError as error:
        findings.add(f"{capture.id}/{DIGESTS}", "manifest", str(error))
        return None


def _hash(place: Place, capture: Capture, name: str, known: Digests | None, findings: Findings) -> str:
    """Sha256 of a file of a capture, read once: has every chunk in it the digest that `chunk_sha256` tells of?"""
    path, (array, _, key) = f"{capture.id}/{name}", name.partition("/")
    if known is None or array not in known.parts or not key.startswith("c/"):
        return place_hash(place, path)
    data = place.read(path)
    try:
        found = hash_shard(data, math.prod(known.parts[array].inside))
        stated = known.shard(array, place_of(key), lambda file: place.read(f"{capture.id}/{file}"))
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        findings.add(path, "manifest", f"cannot be compared with {DIGESTS} ({reason})")
    else:
        if (found != stated).any():
            number = int(np.flatnonzero((found != stated).any(axis=1))[0])
            findings.add(path, "manifest", f"its chunk {number} is not the one that {DIGESTS} tells of")
    return hashlib.sha256(data).hexdigest()


def _check_manifest_files(place: Place, capture: Capture, findings: Findings) -> None:
    """The manifest is not the one that was written: name the files that it is in, and those that are not there."""
    for name in MANIFEST_ARRAYS:
        array = capture[name]
        for cell in range(0, array.shape[0], array.files[0]):
            where = f"{array.path}/{array.chunk_key((cell,))}"
            gone = not place.exists(where)
            message = "is missing" if gone else "this or its partner is not the manifest that the metadata name"
            findings.add(where, "manifest", message)


def check_front(place: Place, capture: Capture, findings: Findings) -> None:
    """Is the front the one that was made, and does it hold what the files themselves do?"""
    stated, where = capture.metadata.front, f"{capture.id}/{FRONT}"
    if not place.exists(where):
        if stated is not None:
            findings.add(where, "manifest", "is missing")
        return
    findings.count("files")
    try:
        if stated is None or place_hash(place, where) != stated:
            findings.add(where, "manifest", "its bytes are not those that were written")
            return
        ends = decode(place.read(where, 0, FRONT_BYTES + 1))
    except (OSError, ValueError) as error:
        findings.add(where, "manifest", f"cannot be read ({getattr(error, 'strerror', None) or error})")
        return
    for path, end in ends.items():
        try:
            size = place.size(f"{capture.id}/{path}")
            same = size == end.size and place.read(f"{capture.id}/{path}", size - len(end.data), size) == end.data
        except OSError:
            same = False
        if not same:
            findings.add(where, "manifest", f"has another {path} than the capture")


def check_chunks(array: zarr.Array[Any], findings: Findings, progress: Progress) -> bool:
    """Does every file of an array decode? One file at a time is in memory."""
    step = grid(array)
    whole = True
    for region in file_regions(array.shape, step):
        progress.advance()
        findings.count("files decoded")
        try:
            array[region]
        except DECODE_ERRORS as error:
            block = tuple(part.start // size for part, size in zip(region, step, strict=True))
            key = array.metadata.encode_chunk_key(block)
            reason = " ".join(str(error).split()) or type(error).__name__
            findings.add(f"{array.path}/{key}", "chunk", f"cannot be decoded ({reason})")
            whole = False
    return whole
