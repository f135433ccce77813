"""Small files of a store: JSON documents replaced atomically, leftovers of a killed writer, sizes."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attnlens.store.durable import publish
from attnlens.store.places.json_text import check_bytes, parse_object
from attnlens.store.places.place import GROUP_DOCUMENT

PARTIAL = ".partial"
"""Ending of a file or folder that is still being written. A killed process may leave some; no reader looks at them."""


def is_partial(path: str) -> bool:
    """Whether a path inside a store, with slashes, is one of those, or in one."""
    return any(part.endswith(PARTIAL) for part in path.split("/"))


def write_atomic(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace `path` by `data` so that a reader sees the old content or the new, never a mixture.

    `durable`: so does a reader after a power cut, and once this has returned it sees the new. Otherwise the file may
    then be empty.
    """
    temporary = stage(path, data)
    try:
        if durable:
            publish(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def stage(path: Path, data: bytes) -> Path:
    """Write `data` beside `path`, under the name returned, to be renamed to it later."""
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        temporary.write_bytes(data)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def group_document(attributes: Mapping[str, Any], consolidated: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The zarr.json of a Zarr v3 group. `consolidated`: array name → that array's zarr.json."""
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if consolidated is not None:
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(consolidated),
        }
    return document


def write_document(folder: Path, document: Mapping[str, Any], *, durable: bool = False) -> None:
    """Write `folder`/zarr.json atomically; `durable` as for `write_atomic`."""
    write_atomic(folder / GROUP_DOCUMENT, document_bytes(document), durable=durable)


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """What a zarr.json holds."""
    return json.dumps(document, ensure_ascii=True, allow_nan=False, indent=1).encode()


def read_document(folder: Path) -> dict[str, Any]:
    """The JSON object in `folder`/zarr.json.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a JSON object.
    """
    path = folder / GROUP_DOCUMENT
    check_bytes(path.stat().st_size)
    return parse_object(read_plain(path))


def read_plain(path: Path) -> bytes:
    """The bytes of a file that may be a stranger's.

    Raises:
        OSError: it is not there, cannot be read, or is no plain file: a pipe would be waited for, a device may not end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return path.read_bytes()


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below `folder` as (path relative to it with slashes, path), sorted."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix(), path


def remove_partials(folder: Path) -> None:
    """Delete half-written files that a killed or failed writer left."""
    for _, path in walk(folder):
        if path.name.endswith(PARTIAL):
            path.unlink(missing_ok=True)


def clean_text(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clean(value: Any) -> Any:
    """`value`, a JSON value, with every string made valid UTF-8."""
    match value:
        case str():
            return clean_text(value)
        case Mapping():
            return {clean_text(str(key)): clean(item) for key, item in value.items()}
        case list() | tuple():
            return [clean(item) for item in value]
        case _:
            return value
