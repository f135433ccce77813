"""The server of `lens view`: this machine only, one page, the files of the stores that were named, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

from h11 import RemoteProtocolError

from attnlens.render.formats.xml import escape
from attnlens.render.viewer.access import Access
from attnlens.render.viewer.assets import TYPES, asset
from attnlens.render.viewer.served import File, Served
from attnlens.render.viewer.wire import Answer, Listener, Refusal, Request, pieces_of
from attnlens.schemas.errors import InputError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data: blob:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Server": "attnlens",
    "Accept-Ranges": "bytes",
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LARGEST_BODY = 2**20
LARGEST_ANSWER = 256 * 2**20
MOST_WISHES = 4096
"""Files or ranges that may be asked for in one request."""
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
_STORE = re.compile(r"store/([0-9]{1,3})/(.*)", re.DOTALL)


class ViewServer(Listener):
    """Serves the page and some stores on the loopback interface, from the moment `serve_forever` is called.

    Args:
        stores: What to serve; names are shown in the page.
        port: 0 takes a free one.
        hosts: Names of hosts to answer to besides those of this machine.

    Raises:
        InputError: the port is taken, or a name is none.
    """

    def __init__(self, stores: Sequence[Served], port: int = 0, hosts: Iterable[str] = ()) -> None:
        self.stores = tuple(stores)
        self.access = Access(hosts)
        try:
            super().__init__(port, self.answer, HEADERS)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--port {port} cannot be used ({error}): choose another, or none for a free one"
            ) from error
        self.port = int(self.server_address[1])
        listed = [{"name": store.name, "url": f"store/{number}/"} for number, store in enumerate(self.stores)]
        meta = f'<meta name="attnlens-stores" content="{escape(json.dumps(listed))}">'
        self.page = asset("index.html").replace(b"</head>", meta.encode() + b"\n</head>", 1)

    @property
    def token(self) -> str:
        """What the address has to hold."""
        return self.access.token

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def answer(self, request: Request) -> Answer:
        """The one answer to a request. Refusal where it gets none of what it asks for."""
        try:
            return self._answer_to(request)
        except (Refusal, OSError, RemoteProtocolError):
            raise
        except Exception as error:
            line = f"lens view met an error of its own: {type(error).__name__}: {error}"
            raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, line) from error

    def _answer_to(self, request: Request) -> Answer:
        path = self.access.path(request)
        if request.method not in ("GET", "HEAD", "POST"):
            allowed = {"Allow": "GET, HEAD, POST"}
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET, HEAD and POST are answered", allowed)
        found = _STORE.fullmatch(path)
        if found is not None and int(found[1]) < len(self.stores):
            store = self.stores[int(found[1])]
            return _many(store, found[2], request) if request.method == "POST" else _one(store, found[2], request)
        if request.method == "POST":
            raise Refusal(HTTPStatus.BAD_REQUEST, "expected a list of files of a store")
        if path not in ("", "app.js", "app.css"):
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing of that name")
        body = asset(path) if path else self.page
        told = {"Content-Type": TYPES[path or "index.html"], "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}
        return _unchanged(request, told) or Answer(HTTPStatus.OK, pieces_of(body), len(body), told)


def _one(store: Served, key: str, request: Request) -> Answer:
    """A file, or one range of it."""
    file = store.file(key)
    if file is None:
        raise Refusal(HTTPStatus.NOT_FOUND, f"{store.name} has no such file")
    told = {"Content-Type": "application/octet-stream"} | ({"ETag": file.etag} if file.etag else {})
    wanted = request.header("if-match")
    if wanted is not None and wanted.strip() != "*" and file.etag not in _tags(wanted):
        raise Refusal(HTTPStatus.PRECONDITION_FAILED, f"{store.name} has changed: reload")
    if unchanged := _unchanged(request, told):
        return unchanged
    header = request.header("range")
    if (only := request.header("if-range")) is not None and only != file.etag:
        header = None
    span = None if header is None else _span(header, file.size)
    if span is None:
        return Answer(HTTPStatus.OK, store.read(file, 0, file.size), file.size, told)
    start, stop = span
    if start >= stop:
        told = {"Content-Range": f"bytes */{file.size}"}
        return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=told)
    told["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    return Answer(HTTPStatus.PARTIAL_CONTENT, store.read(file, start, stop), stop - start, told)


def _many(store: Served, rest: str, request: Request) -> Answer:
    """Several files or ranges in one answer: length of a list, the list, then the bytes.

    Of each wish the list has [size, start, total, tag of the capture]; where there is no such file [tag], or null
    outside of captures; or the status and the line that it alone would have got. If nothing else is in it, the first of
    those is the answer.
    """
    if rest:
        raise Refusal(HTTPStatus.BAD_REQUEST, "expected a list of files of a store")
    try:
        wishes = [_wish(item) for item in json.loads(request.body(LARGEST_BODY))]
    except (ValueError, TypeError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "expected a list of [file, range]") from None
    if len(wishes) > MOST_WISHES:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_WISHES} files or ranges at a time")
    files: dict[str, File | Refusal | list[str] | None] = {}
    head: list[list[Any] | None] = []
    parts: list[tuple[File, int, int]] = []
    for key, span in wishes:
        if key not in files:
            try:
                files[key] = store.file(key) or ([tag] if (tag := store.tag(key)) else None)
            except Refusal as refusal:
                files[key] = refusal
        file = files[key]
        if not isinstance(file, File):
            head.append([int(file.status), file.line] if isinstance(file, Refusal) else file)
            continue
        start, stop = (max(0, file.size + span), file.size) if isinstance(span, int) else span or (0, file.size)
        start, stop = min(start, file.size), min(stop, file.size)
        parts.append((file, start, stop))
        head.append([stop - start, start, file.size, file.tag])
    bad = [file for file in files.values() if isinstance(file, Refusal)]
    if bad and len(bad) == len(files):
        raise bad[0]
    size = sum(stop - start for _, start, stop in parts)
    if size > LARGEST_ANSWER:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"asked for {size} bytes, more than {LARGEST_ANSWER} at a time"
        )
    listed = json.dumps(head).encode()
    front = struct.pack("<I", len(listed)) + listed
    told = {"Content-Type": "application/octet-stream"}
    return Answer(HTTPStatus.OK, _joined(store, front, parts), len(front) + size, told)


def _joined(store: Served, front: bytes, parts: list[tuple[File, int, int]]) -> Iterator[bytes]:
    yield front
    for file, start, stop in parts:
        yield from store.read(file, start, stop)


def _unchanged(request: Request, told: dict[str, str]) -> Answer | None:
    """304 where the client has it already."""
    known = request.header("if-none-match")
    if known is None or "ETag" not in told or told["ETag"] not in _tags(known):
        return None
    return Answer(HTTPStatus.NOT_MODIFIED, headers={"ETag": told["ETag"]})


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _span(header: str, size: int) -> tuple[int, int] | None:
    """The range start … stop-1 that a header asks for, empty where the file has none of it.

    None, and so the whole file, for what is no range of bytes, and for several ranges, as RFC 9110, 14.2 allows.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    first, last = (None if not text else _number(text) for text in found.groups())
    if first is None:
        return max(0, size - (last or 0)), size
    if last is not None and last < first:
        return None
    return first, size if last is None else min(size, last + 1)


def _number(digits: str) -> int:
    """A number, of which more than 18 digits are as good as 10^18: no file is so long."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else 10**18


def _wish(item: Any) -> tuple[str, tuple[int, int] | int | None]:
    """One of the things that the page asks for together: a file and its range."""
    key, span = item
    if not isinstance(key, str):
        raise TypeError("a file has a name")
    if span is None or (type(span) is int and span <= 0):
        return key, span
    start, stop = span
    if not (type(start) is int and type(stop) is int and 0 <= start <= stop):
        raise ValueError("a range goes upwards")
    return key, (start, stop)
