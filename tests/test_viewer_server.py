"""Who may ask the server of `lens view`, and for what."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnlens.render.viewer.serve import open_server
from attnlens.render.viewer.server import ViewServer
from attnlens.schemas.errors import AttnlensError
from render_store import make
from viewer_page import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    make(folder / "run.zarr")
    (folder / "secret.txt").write_text("secret")
    (folder / "run.zarr" / "out").symlink_to(folder / "secret.txt")
    (folder / "run.zarr" / "up").symlink_to(folder)
    (folder / "run.zarr" / "in").symlink_to(folder / "run.zarr" / "zarr.json")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ViewServer]:
    with serving(folder / "run.zarr") as server:
        yield server


def ask(
    server: ViewServer,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, own)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_only_the_loopback_interface_is_served(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "localhost.evil:{port}", "", "127.0.0.1.evil.example", "128.0.0.1:{port}",
     "0.0.0.0:{port}", "[::2]:{port}", "x@127.0.0.1:{port}", "127.0.0.1:{port}:1", "127.0.0.1, evil.example", "[::1"],
)  # fmt: skip
def test_other_hosts_are_refused(server: ViewServer, host: str) -> None:
    """Whatever name a page gave this address: DNS rebinding."""
    status, body, _ = ask(server, f"/{server.token}/store/0/zarr.json", Host=host.format(port=server.port))
    assert status == 403
    assert b"attnlens" not in body


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "localhost:9000", "127.0.0.1", "127.8.9.1:1", "[::1]:9000",
             "LOCALHOST:9000", "run.localhost:80"],
)  # fmt: skip
def test_own_hosts_and_origins_are_answered(server: ViewServer, host: str) -> None:
    """On any port, since a tunnel (`ssh -L 9000:localhost:PORT`) has its own."""
    host = host.format(port=server.port)
    assert ask(server, f"/{server.token}/", Host=host)[0] == 200
    assert ask(server, f"/{server.token}/", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "ftp://127.0.0.1:{port}", "http://127.0.0.1:1", "http://localhost", ""]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_other_origins_are_refused(server: ViewServer, origin: str, method: str) -> None:
    status, body, headers = ask(
        server, f"/{server.token}/store/0/zarr.json", method, b"[]" if method == "POST" else None,
        Origin=origin.format(port=server.port),
    )  # fmt: skip
    assert status == 403
    assert b"attnlens" not in body
    assert "Access-Control-Allow-Origin" not in headers


def test_requests_from_other_sites_are_refused_but_links_are_not(server: ViewServer) -> None:
    path = f"/{server.token}/store/0/zarr.json"
    assert ask(server, path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert ask(server, f"/{server.token}/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/app.js", "/store/0/zarr.json", "/wrong/", "/wrong/store/0/zarr.json", "/%00/", "/%C3%A9/"]
)
def test_without_the_token_there_is_nothing(server: ViewServer, path: str) -> None:
    assert ask(server, path)[0] == 404
    assert len(server.token) >= 24


@pytest.mark.parametrize(
    "key",
    [
        "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "0000/../../secret.txt", "/etc/passwd", "//etc/passwd",
        "out", "up/secret.txt", "0000", "", ".", "0000/zarr.json/", "zarr.json%00", "zarr.json%0a", "..",
        "0000\\zarr.json", ".hidden",
    ],
)  # fmt: skip
def test_paths_outside_the_store_are_refused(server: ViewServer, key: str) -> None:
    status, body, _ = ask(server, f"/{server.token}/store/0/{key}")
    assert status == 404
    assert b"secret" not in body
    assert ask(server, f"/{server.token}/store/1/zarr.json")[0] == 404


def test_links_inside_the_store_are_followed(server: ViewServer, folder: Path) -> None:
    assert ask(server, f"/{server.token}/store/0/in")[1] == (folder / "run.zarr" / "zarr.json").read_bytes()


@pytest.mark.parametrize(
    ("wanted", "span"),
    [("0-9", (0, 10)), ("7-7", (7, 8)), ("5-", (5, None)), ("-4", (-4, None)), ("-999999", (0, None)),
     ("10-9999999", (10, None))],
)  # fmt: skip
def test_ranges(server: ViewServer, folder: Path, wanted: str, span: tuple[int, int | None]) -> None:
    whole = (folder / "run.zarr" / "zarr.json").read_bytes()
    status, body, headers = ask(server, f"/{server.token}/store/0/zarr.json", Range=f"bytes={wanted}")
    assert status == 206
    assert body == whole[slice(*span)]
    start = whole.index(body) if len(body) > 20 else slice(*span).indices(len(whole))[0]
    assert headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{len(whole)}"


def test_ranges_that_do_not_exist(server: ViewServer) -> None:
    status, body, headers = ask(server, f"/{server.token}/store/0/zarr.json", Range="bytes=99999999-")
    assert (status, body) == (416, b"")
    assert headers["Content-Range"].startswith("bytes */")
    assert ask(server, f"/{server.token}/store/0/zarr.json", Range="rows=1-2")[0] == 200


def test_many_files_in_one_answer(server: ViewServer, folder: Path) -> None:
    whole = (folder / "run.zarr" / "zarr.json").read_bytes()
    wishes = [
        ["zarr.json", None],
        ["zarr.json", [3, 9]],
        ["zarr.json", -5],
        ["missing", None],
        ["../secret.txt", None],
        ["out", None],
    ]
    status, body, _ = ask(server, f"/{server.token}/store/0/", "POST", json.dumps(wishes).encode())
    assert status == 200
    size = struct.unpack("<I", body[:4])[0]
    head = json.loads(body[4 : 4 + size])
    n = len(whole)
    assert head == [[n, 0, n, None], [6, 3, n, None], [5, n - 5, n, None], None, None, None]
    assert body[4 + size :] == whole + whole[3:9] + whole[-5:]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'[["a"]]', b"[[1, null]]", b'[["a", [5, 1]]]', b'[["a", "b"]]', b"[" * 100000, b'"a"']
)
def test_nonsense_is_answered_in_words(server: ViewServer, body: bytes) -> None:
    status, said, _ = ask(server, f"/{server.token}/store/0/", "POST", body)
    assert status == 400
    assert said.startswith(b"expected a list")


def test_too_long_a_list_is_refused(server: ViewServer) -> None:
    assert ask(server, f"/{server.token}/store/0/", "POST", Content_Length=str(2**20 + 1))[0] == 413
    wishes = json.dumps([["zarr.json", [0, 1]]] * 4097).encode()
    assert ask(server, f"/{server.token}/store/0/", "POST", wishes)[0] == 413


def test_every_answer_forbids_what_it_does_not_need(server: ViewServer) -> None:
    for path in ("", "app.js", "store/0/zarr.json", "missing"):
        headers = ask(server, f"/{server.token}/{path}")[2]
        policy = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_what_is_no_store_is_refused_before_serving(tmp_path: Path) -> None:
    with pytest.raises(AttnlensError, match="no such store"):
        open_server([tmp_path / "nothing.zarr"])


def test_a_port_that_is_taken(server: ViewServer, folder: Path) -> None:
    with pytest.raises(AttnlensError, match=f"--port {server.port} cannot be used"):
        open_server([folder / "run.zarr"], server.port)


def test_names_of_stores_are_text(tmp_path: Path) -> None:
    path = tmp_path / '"><b>x.zarr'
    make(path)
    with serving(path) as server:
        assert b"<b>" not in server.page
        assert b"&lt;b&gt;x.zarr" in server.page
