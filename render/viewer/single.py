"""One HTML file that holds the page and a store: it opens from a mail attachment, offline, and fetches nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from attnlens.render.formats.xml import escape
from attnlens.render.viewer.assets import asset, digest
from attnlens.render.viewer.contract import READS
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.version import NAMESPACE
from attnlens.store.lists import entry_of
from attnlens.store.manifest import has_digest
from attnlens.store.places import Place, stem_of
from attnlens.store.reader import Capture, open_store
from attnlens.store.tools.output import new_file

LARGEST = 512 * 2**20
"""Bytes of a file that browsers still open: a string of V8 ends at 512 MiB."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """What was written: the file, its size in bytes, the captures in it."""

    path: Path
    bytes: int
    captures: tuple[str, ...]


def export_html(
    store: str | PathLike[str], path: Path, captures: Sequence[str] | None = None, *, overwrite: bool = False
) -> Single:
    """Write captures of a store, all for None, and the page that shows them into one file.

    Raises:
        StoreError: there is no store, or it is damaged; or the disk refuses.
        AbsentError: it has no such capture.
        InputError: it would be too large; or something is at `path`, and it is not to be replaced.
    """
    opened = open_store(store)
    chosen = [opened[name] for name in (captures or opened.ids)]
    if not chosen:
        raise InputError(f"{store} holds no capture yet, there is nothing to export")
    with new_file(path, overwrite=overwrite) as temporary:
        text = page(opened.place, chosen)
        temporary.write_bytes(text)
    return Single(path=path, bytes=len(text), captures=tuple(capture.id for capture in chosen))


def page(
    place: Place,
    captures: Sequence[Capture],
    *,
    state: str = "",
    frame: bool = False,
    largest: int = LARGEST,
    instead: str = "choose fewer captures with --capture, make the store smaller, or use lens view",
) -> bytes:
    """The HTML of one file that shows these captures.

    Args:
        place: Where they are.
        captures: Which.
        state: Fragment of the page's state to begin with (`query=41&heads=mean`).
        frame: The page stands in another one, which gives it no address of its own.
        largest: Bytes that it may have at most.
        instead: What to do where it would have more.

    Raises:
        InputError: it would be larger than that.
        StoreError: a file of a finished capture is not what was written, or one cannot be read.
    """
    script, style = asset("app.js"), asset("app.css")
    keys = {capture.id: _keys(capture) for capture in captures}
    size = sum(_size(capture, key) for capture in captures for key in keys[capture.id]) * 4 // 3
    size += len(script) + len(style)
    if size > largest:
        where = "a notebook takes" if frame else "a browser opens"
        raise InputError(
            f"{place}: the page would have {size / 2**20:.0f} MiB, more than the {largest / 2**20:.0f} that {where}: "
            f"{instead}"
        )
    name = f"{stem_of(str(place))}.zarr"
    files = {"zarr.json": _text(json.dumps(_root(place, captures), ensure_ascii=True).encode())}
    files |= {key: _text(_read(capture, key)) for capture in captures for key in keys[capture.id]}
    data = json.dumps({name: files}).replace("<", "\\u003c").encode()
    policy = (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; img-src data: blob:; "
        "worker-src blob:; base-uri 'none'; form-action 'none'"
    )
    told = f'<meta name="attnlens-state" content="{escape(state)}">' if state or frame else ""
    return b"".join([
        b'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'.encode(),
        b'<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        b'<meta name="referrer" content="no-referrer">\n',
        b'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n',
        f"<title>{escape(name)}</title>\n{told}<style>".encode(), style, b"</style>\n</head>\n<body>\n",
        b'<script type="application/json" id="attnlens-files">', data, b"</script>\n<script>", script,
        b"</script>\n</body>\n</html>\n",
    ])  # fmt: skip


def _arrays(capture: Capture) -> list[str]:
    """Arrays of a capture that the page reads."""
    further = [lens.name for lens in capture.metadata.lenses]
    wanted = {*READS, *(f"{name}_{lens}" for name in READS for lens in further)}
    return [name for name in capture.names if name in wanted]


def _keys(capture: Capture) -> list[str]:
    """Every file that the page may ask for, metadata aside; of a finished capture by its manifest."""
    known = None if capture.hashes is None else sorted(f"{capture.id}/{path}" for path in capture.hashes)
    folders = [f"{capture.id}/{name}/c" for name in _arrays(capture)]
    if known is None:
        return [key for folder in folders for key in capture.place.files(folder)]
    return [key for folder in folders for key in known if key.startswith(f"{folder}/")]


def _size(capture: Capture, key: str) -> int:
    with _told(capture, key):
        return capture.checked_place.size(key)


def _read(capture: Capture, key: str) -> bytes:
    """A file, compared with the manifest of a finished capture."""
    with _told(capture, key):
        return capture.checked_place.read(key)


@contextmanager
def _told(capture: Capture, key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"{capture.place}: {key} is missing; run `lens verify`") from None
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"{capture.place}: {key} cannot be read ({why}); run `lens verify`") from None


def _root(place: Place, captures: Sequence[Capture]) -> dict[str, Any]:
    """The store's zarr.json with the metadata of these captures in it, so that it is the only one."""
    root = place.document()
    if not has_digest(root):
        raise StoreError(f"{place}: zarr.json was changed after it was written; run `lens verify`")
    about = {key: value for key, value in root["attributes"][NAMESPACE].items() if key not in ("batches", "lists")}
    about["planned"] = [capture.id for capture in captures]
    about["index"] = [entry_of(capture.metadata).model_dump(mode="json") for capture in captures]
    documents: dict[str, Any] = {}
    for capture in captures:
        group = {key: value for key, value in capture.document.items() if key != "consolidated_metadata"}
        documents[capture.id] = group
        documents |= {f"{capture.id}/{name}": capture.documents[name] for name in _arrays(capture)}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {NAMESPACE: about},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": documents},
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
