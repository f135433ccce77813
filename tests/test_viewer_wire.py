"""Requests to `lens view` as bytes on a socket: each is answered once, and none for ever."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from attnlens.render.viewer import wire
from attnlens.render.viewer.server import ViewServer
from render_store import make
from viewer_page import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewServer]:
    store = tmp_path_factory.mktemp("wire") / "run.zarr"
    make(store)
    with serving(store) as server:
        yield server


def said(server: ViewServer, request: str, *, wait: float = 5.0) -> str:
    """Everything that comes back until the connection is closed; {port} and {token} are put in."""
    text = request.format(port=server.port, token=server.token).replace("\n", "\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.sendall(text.encode("latin-1"))
        found = b""
        while data := connection.recv(65536):
            found += data
    return found.decode("latin-1")


def statuses(answer: str) -> list[int]:
    return [int(status) for status in re.findall(r"HTTP/1\.1 (\d{3}) ", answer)]


HEAD = "Host: 127.0.0.1:{port}\n"
END = HEAD + "Connection: close\n\n"


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("POST /wrong/ HTTP/1.1\n" + HEAD + "Content-Length: 40\n\nGET /{token}/ HTTP/1.1\nHost: 127.0.0.1\n\n", [404]),
        ("POST /{token}/store/0/ HTTP/1.1\nHost: evil\nContent-Length: 3\n\nabc", [403]),
        ("DELETE /{token}/ HTTP/1.1\n" + HEAD + "Content-Length: 3\n\nabc", [405]),
        ("GET /{token}/ HTTP/1.1\n" + HEAD + "Content-Length: 3\n\nabc", [200]),
        ("GET /{token}/ HTTP/1.1\n" + HEAD + HEAD + "\n", [400]),
        ("GET /{token}/ HTTP/1.1\nHost: evil\n" + HEAD + "\n", [400]),
        ("GET /{token}/ HTTP/1.1\n\n", [400]),
        ("GET http://127.0.0.1:{port}/{token}/ HTTP/1.1\n" + END, [200]),
        ("GET http://evil/{token}/ HTTP/1.1\n" + END, [400]),
        ("GET /{token}/ HTTP/1.0\n" + HEAD + "\n", [200]),
        ("GET /{token}/ HTTP/1.0\n\n", [403]),
        ("GET * HTTP/1.1\n" + END, [400]),
        ("CONNECT evil:80 HTTP/1.1\n" + END, [400]),
        ("GET /{token}/ HTTP/1.1\n" + HEAD + "\nHEAD /{token}/ HTTP/1.1\n" + END, [200, 200]),
        ("GET /{token}/ HTTP/1.1\n" + HEAD + "X: " + "a" * 70000 + "\n\n", [431]),
        ("GET /{token}/ HTTP/1.1\n" + HEAD + "Content-Length: 1\nContent-Length: 2\n\n", [400]),
        ("nonsense\n\n", [400]),
        ("GET /{token}/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\n" + END, [404]),
        ("GET /a/b/{token}/app.css HTTP/1.1\n" + END, [200]),
        ("GET /{token} HTTP/1.1\n" + END, [308]),
        ("POST /{token}/store/0/ HTTP/1.1\nTransfer-Encoding: chunked\n" + END + "2\n[]\n0\n\n", [200]),
    ],
)  # fmt: skip
def test_each_request_gets_one_answer(server: ViewServer, request_text: str, expected: list[int]) -> None:
    """The connection is closed by the server where the body of a refused request, or a head, was not read."""
    assert statuses(said(server, request_text)) == expected


def test_a_client_that_waits_for_100_is_told_to_go_on_or_refused(server: ViewServer) -> None:
    more = HEAD + "Expect: 100-continue\nContent-Length: 2\nConnection: close\n\n"
    assert statuses(said(server, "POST /wrong/ HTTP/1.1\n" + more)) == [404]
    assert statuses(said(server, "POST /{token}/store/0/ HTTP/1.1\n" + more + "[]")) in ([100, 200], [200])


@pytest.mark.parametrize(
    ("wanted", "status", "size"),
    [
        ("bytes=0-" + "9" * 40, 206, None),
        ("bytes=" + "9" * 5000 + "-", 416, 0),
        ("bytes=-" + "9" * 5000, 206, None),
        ("bytes=5-2", 200, None),
        ("bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(2000)), 200, None),
        ("bytes=\u0660-\u0661".encode().decode("latin-1"), 200, None),
    ],
)  # fmt: skip
def test_odd_ranges_cost_no_more_than_the_file(server: ViewServer, wanted: str, status: int, size: int | None) -> None:
    start = time.monotonic()
    answer = said(server, f"GET /{{token}}/store/0/zarr.json HTTP/1.1\nRange: {wanted}\n" + END)
    head, _, body = answer.partition("\r\n\r\n")
    whole = server.stores[0].file("zarr.json")
    assert whole is not None
    assert statuses(head) == [status]
    assert len(body.encode("latin-1")) == (whole.size if size is None else size)
    assert time.monotonic() - start < 2


def test_slow_clients_neither_stay_nor_lock_others_out(server: ViewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "REQUEST_SECONDS", 0.5)
    before = threading.active_count()
    with ExitStack() as held:
        slow = [
            held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            for _ in range(wire.CONNECTIONS + 20)
        ]
        for connection in slow:
            with suppress(OSError):  # those that gave way already
                connection.sendall(b"GET / HTTP/1.1\r\nX-")
        assert statuses(said(server, "GET /{token}/ HTTP/1.1\n" + END)) == [200]
        assert threading.active_count() - before <= wire.CONNECTIONS + 1
        end = time.monotonic() + 0.3
        while time.monotonic() < end:  # byte by byte does not make the time longer
            slow[-1].sendall(b"a")
            time.sleep(0.05)
        assert b" 408 " in slow[-1].recv(65536)


def test_a_client_that_hangs_up_leaves_no_trace(server: ViewServer, capfd: pytest.CaptureFixture[str]) -> None:
    for text in (
        "GET /{token}/app.js HTTP/1.1\n" + HEAD + "\n",
        "POST /{token}/store/0/ HTTP/1.1\n" + HEAD + "Content-Length: 9\n\n[",
    ):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )  # a reset, as of a killed client
        connection.sendall(text.format(port=server.port, token=server.token).replace("\n", "\r\n").encode())
        connection.close()
    assert statuses(said(server, "GET /{token}/ HTTP/1.1\n" + END)) == [200]
    time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


def test_a_client_that_ends_its_side_is_answered(server: ViewServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        text = "GET /{token}/ HTTP/1.1\n" + HEAD + "\n"
        connection.sendall(text.format(port=server.port, token=server.token).replace("\n", "\r\n").encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_names_that_were_allowed_are_answered_behind_a_proxy(tmp_path: Path) -> None:
    from attnlens.render.viewer.serve import open_server
    from attnlens.schemas.errors import AttnlensError

    make(tmp_path / "run.zarr")
    with serving(tmp_path / "run.zarr", hosts=["Hub.example.org"]) as server:
        for host, origin, status in (
            ("hub.example.org", "https://hub.example.org", 200),
            ("hub.example.org:8443", "https://hub.example.org:8443", 200),
            ("localhost:8000", "https://hub.example.org", 200),
            ("hub.example.org", "https://evil.example.org", 403),
            ("evil.example.org", "https://hub.example.org", 403),
        ):
            text = f"GET /proxy/9000/{{token}}/ HTTP/1.1\nHost: {host}\nOrigin: {origin}\nConnection: close\n\n"
            assert statuses(said(server, text)) == [status]
    for name in ("http://hub", "hub:80", "*.example.org", "", "a b", "hub/x"):
        with pytest.raises(AttnlensError, match="is no name of a host"):
            open_server([tmp_path / "run.zarr"], hosts=[name])
