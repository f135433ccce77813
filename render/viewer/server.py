"""The server of `lens view`: this machine only, one page, the files of the stores that were named, and nothing else.

Other pages in the same browser are the danger: they may send requests here, under any name that leads to this machine.
So the address holds a random token, the Host header must be ours (DNS rebinding), and so must Origin where it is sent.
"""

from __future__ import annotations

import json
import re
import secrets
import struct
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from attnlens.render.formats.xml import escape
from attnlens.render.viewer.assets import TYPES, asset
from attnlens.schemas.errors import InputError
from attnlens.store.places import Place

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data: blob:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LARGEST_BODY = 2**20
LARGEST_ANSWER = 256 * 2**20
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,9}")
"""How files of a store are called: no `..`, no drive, no dot in front. Links that lead out the place itself refuses."""
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


class ViewServer(ThreadingHTTPServer):
    """Serves the page and some stores on the loopback interface, from the moment `serve_forever` is called.

    Args:
        stores: Name and place of each; names are shown in the page.
        port: 0 takes a free one.

    Raises:
        InputError: the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, stores: Sequence[tuple[str, Place]], port: int = 0) -> None:
        self.stores = tuple(place for _, place in stores)
        self.token = secrets.token_urlsafe(18)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--port {port} cannot be used ({error}): choose another, or none for a free one"
            ) from error
        self.port = int(self.server_address[1])
        self.hosts = frozenset({f"127.0.0.1:{self.port}", f"localhost:{self.port}"})
        listed = [{"name": name, "url": f"store/{number}/"} for number, (name, _) in enumerate(stores)]
        meta = f'<meta name="attnlens-stores" content="{escape(json.dumps(listed))}">'
        self.page = asset("index.html").replace(b"</head>", meta.encode() + b"\n</head>", 1)

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://127.0.0.1:{self.port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "attnlens", ""
    wbufsize = 65536
    disable_nagle_algorithm = True
    timeout = 60
    server: ViewServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the person."""

    def do_GET(self) -> None:
        """The page, or (a range of) a file of a store."""
        path = self._path()
        if path is None:
            return
        if path in ("", "app.js", "app.css"):
            name = path or "index.html"
            self._send(HTTPStatus.OK, self.server.page if name == "index.html" else asset(name), TYPES[name])
            return
        store, key = self._store(path)
        size = None if store is None else _size(store, key)
        if store is None or size is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such file in the store")
            return
        header = self.headers.get("Range")
        span = (0, size) if header is None else _span(header, size)
        if span is None:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", headers={"Content-Range": f"bytes */{size}"})
            return
        body = store.read(key, *span)
        if header is None:
            self._send(HTTPStatus.OK, body)
        else:
            told = {"Content-Range": f"bytes {span[0]}-{span[1] - 1}/{size}"}
            self._send(HTTPStatus.PARTIAL_CONTENT, body, headers=told)

    def do_HEAD(self) -> None:
        """The same without the bytes."""
        self.do_GET()

    def do_POST(self) -> None:
        """Several files or ranges in one answer: length of a list, the list [size, start, total], then the bytes."""
        path = self._path()
        store, key = (None, "") if path is None else self._store(path)
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if store is None or key or not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self._refuse(HTTPStatus.BAD_REQUEST, "expected a list of files of a store")
            return
        try:
            wishes = [_wish(item) for item in json.loads(self.rfile.read(int(length)))]
        except (ValueError, TypeError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST, "expected a list of [file, range]")
            return
        head: list[list[int] | None] = []
        body: list[bytes] = []
        for name, span in wishes:
            size = _size(store, name)
            if size is None:
                head.append(None)
                continue
            start, stop = (max(0, size + span), size) if isinstance(span, int) else span or (0, size)
            if sum(map(len, body)) + min(stop, size) - start > LARGEST_ANSWER:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "asked for too much at a time")
                return
            body.append(store.read(name, start, min(stop, size)))
            head.append([len(body[-1]), start, size])
        listed = json.dumps(head).encode()
        self._send(HTTPStatus.OK, b"".join([struct.pack("<I", len(listed)), listed, *body]))

    def _path(self) -> str | None:
        """What was asked for below the token; None where it was refused."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost only")
        elif origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "pages of another origin may not read this")
        elif self.headers.get("Sec-Fetch-Site") == "cross-site" and self.headers.get("Sec-Fetch-Mode") != "navigate":
            self._refuse(HTTPStatus.FORBIDDEN, "pages of another site may not read this")
        else:
            token, slash, rest = unquote(urlsplit(self.path).path).removeprefix("/").partition("/")
            if secrets.compare_digest(token.encode(), self.server.token.encode()) and slash:
                return rest
            self._refuse(HTTPStatus.NOT_FOUND, "use the address that lens view printed")
        return None

    def _store(self, path: str) -> tuple[Place | None, str]:
        """Which store a path leads to, and the file in it."""
        found = re.fullmatch(r"store/(\d{1,3})/(.*)", path, re.DOTALL)
        if found is None or int(found[1]) >= len(self.server.stores):
            return None, ""
        return self.server.stores[int(found[1])], found[2]

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, f"{why}\n".encode(), "text/plain; charset=utf-8")

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        kind: str = "application/octet-stream",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        own = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in {**own, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _size(store: Place, key: str) -> int | None:
    """Bytes of a file, None where the store has none of that name."""
    try:
        return store.size(key) if KEY.fullmatch(key) else None
    except OSError:
        return None


def _span(header: str, size: int) -> tuple[int, int] | None:
    """The range start … stop-1 that a header asks for; None where there are no such bytes."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return 0, size
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
    return (start, stop) if start < stop else None


def _wish(item: Any) -> tuple[str, tuple[int, int] | int | None]:
    """One of the things that the page asks for together: a file and its range."""
    key, span = item
    if not isinstance(key, str):
        raise TypeError("a file has a name")
    if span is None or (isinstance(span, int) and span <= 0):
        return key, span
    start, stop = span
    if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop):
        raise ValueError("a range goes upwards")
    return key, (start, stop)
