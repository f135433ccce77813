"""`lens view` serves what was written and nothing else, and a page never mixes two stores."""

from __future__ import annotations

import http.client
import json
import shutil
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnlens.render.viewer import served
from attnlens.render.viewer.server import ViewServer
from attnlens.store.manifest import place_hash
from attnlens.store.places import Place
from render_store import make
from store_sample import plain_zip
from viewer_page import Page, _Static, chromium, running, serving


def get(server: ViewServer, key: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(
            "GET", f"/{server.token}/store/0/{key}", headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def post(server: ViewServer, wishes: list[Any]) -> tuple[int, list[Any], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", f"/{server.token}/store/0/", json.dumps(wishes).encode())
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            return answer.status, [], body
        size = struct.unpack("<I", body[:4])[0]
        return answer.status, json.loads(body[4 : 4 + size]), body[4 + size :]
    finally:
        connection.close()


def chunks(store: Path, array: str) -> list[Path]:
    return sorted(path for path in (store / "0000" / array / "c").rglob("*") if path.is_file())


def swap(store: Path) -> tuple[Path, Path]:
    """Two chunk files change places: each still has a good checksum of its own."""
    one, other = chunks(store, "attention_max")[0], chunks(store, "attention_mean")[0]
    a, b = one.read_bytes(), other.read_bytes()
    assert a != b
    one.write_bytes(b)
    other.write_bytes(a)
    return one, other


def test_swapped_files_are_refused_by_the_server_and_said_in_the_page(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    make(store)
    one, _ = swap(store)
    key = one.relative_to(store).as_posix()
    with serving(store) as server:
        status, body, _ = get(server, key)
        assert (status, body.count(b"\n")) == (500, 1)
        assert body.startswith(f"run.zarr: {key} is not the file that was written".encode())
        assert get(server, key, Range="bytes=0-3")[0] == 500
        assert post(server, [[key, [0, 3]]])[0] == 500
        status, head, rest = post(server, [[key, None], ["0000/zarr.json", [0, 1]]])
        assert (status, head[0][0], rest) == (200, 500, b"{")
        with chromium() as browser:
            page = Page(browser, server.url)
            page.page.wait_for_function("document.querySelector('.notice').textContent")
            assert f"{key} is not the file that was written" in page.page.inner_text(".notice")
            assert "(500)" in page.page.inner_text(".notice")
            page.close()


def test_a_packed_store_is_compared_as_well(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    make(store)
    one, _ = swap(store)
    key = one.relative_to(store).as_posix()
    with serving(plain_zip(store, tmp_path / "run.zarr.zip")) as server:  # `lens pack` refuses such a store
        assert get(server, key)[0] == 500
        assert get(server, "0000/token_text/c/0")[0] == 200


def test_a_file_is_hashed_once_for_each_version_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large store is not gone through up front."""
    store = tmp_path / "run.zarr"
    make(store)
    hashed: list[str] = []

    def counted(place: Place, key: str) -> str:
        hashed.append(key)
        return place_hash(place, key)

    monkeypatch.setattr(served, "place_hash", counted)
    key = chunks(store, "attention_max")[0].relative_to(store).as_posix()
    with serving(store) as server:
        assert hashed == []
        for _ in range(3):
            assert get(server, key)[0] == 200
        assert hashed == [key]
        data = (store / key).read_bytes()
        (store / key).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert get(server, key)[0] == 500
        (store / key).write_bytes(data)
        assert get(server, key)[0] == 200


def test_a_file_that_the_manifest_lists_and_that_is_gone_is_404_with_a_line(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    make(store)
    gone = chunks(store, "attention_weight")[0]
    gone.unlink()
    key = gone.relative_to(store).as_posix()
    with serving(store) as server:
        status, body, _ = get(server, key)
        assert status == 404
        assert body == f"run.zarr: {key} is missing, the capture's manifest lists it; run `lens verify`\n".encode()
        status, _, body = post(server, [[key, None]])
        assert status == 404
        assert b"is missing" in body
        assert post(server, [["0000/nothing", None], ["nothing", None]])[1][1] is None


def test_changed_metadata_and_files_that_were_added_are_refused(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    make(store)
    (store / "0000" / "attention_max" / "c" / "9").write_bytes(b"added")
    with serving(store) as server:
        assert get(server, "0000/zarr.json")[0] == 200
        status, body, _ = get(server, "0000/attention_max/c/9")
        assert (status, b"is not in the capture's manifest" in body) == (500, True)
        document = json.loads((store / "0000" / "zarr.json").read_text())
        document["attributes"]["attnlens"]["completion"] = "something else"
        (store / "0000" / "zarr.json").write_text(json.dumps(document))
        status, body, _ = get(server, "0000/zarr.json")
        assert (status, b"does not have its digest" in body) == (500, True)


def test_conditions_of_http_are_honoured(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    with serving(tmp_path / "run.zarr") as server:
        tag = get(server, "zarr.json")[2]["ETag"]
        assert get(server, "zarr.json", If_None_Match=tag)[:2] == (304, b"")
        assert get(server, "zarr.json", If_Match='"other"')[0] == 412
        assert get(server, "zarr.json", If_Match=tag)[0] == 200
        assert get(server, "zarr.json", If_Range=tag, Range="bytes=0-1")[0] == 206
        assert get(server, "zarr.json", If_Range='"other"', Range="bytes=0-1")[0] == 200
        first = get(server, "0000/token_text/c/0")[2]["ETag"]
        shutil.rmtree(tmp_path / "run.zarr")
        make(tmp_path / "run.zarr", seed=3)
        assert get(server, "0000/token_text/c/0")[2]["ETag"] != first
        assert get(server, "0000/token_text/c/0", If_Match=first)[0] == 412


@pytest.mark.parametrize("packed", [False, True])
def test_a_store_that_is_replaced_while_a_page_is_open_is_noticed(tmp_path: Path, packed: bool) -> None:
    """Long enough that its parts do not all come with the first picture."""
    from attnlens.store.tools.pack import pack

    shape: dict[str, Any] = {"n_prompt": 40, "n_generated": 200, "n_layer": 6, "n_head": 8}
    make(tmp_path / "old.zarr", **shape)
    new = make(tmp_path / "new.zarr", seed=7, **shape)
    name = "run.zarr.zip" if packed else "run.zarr"
    for source in ("old", "new"):
        if packed:
            pack(tmp_path / f"{source}.zarr", tmp_path / f"{source}.zip")
    suffix = "zip" if packed else "zarr"
    (tmp_path / f"old.{suffix}").rename(tmp_path / name)
    with serving(tmp_path / name) as server, chromium() as browser:
        page = Page(browser, server.url + "#query=230")
        assert page.page.inner_text(".notice") == ""
        (tmp_path / name).rename(tmp_path / "aside")
        (tmp_path / f"new.{suffix}").rename(tmp_path / name)
        page.set(query=50, heads="0", view="cells")
        assert "The store has changed since this page was opened: reload." in page.page.inner_text(".notice")
        page.page.click(".notice button")
        page.page.wait_for_function("!document.querySelector('.notice').textContent && attnlens.view.board.scene")
        page.js("attnlens.ready")
        found = page.js("() => Array.from({ length: 3 }, (_, row) => attnlens.view.board.scene.value(row, 4))")
        assert found == new.weights[:3, 0, 50, 4].astype(np.float64).tolist()
        page.close()


def test_an_unreachable_store_is_502_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    from attnlens.store.places import fetch

    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    make(tmp_path / "run.zarr", n_prompt=40, n_generated=40)
    key = chunks(tmp_path / "run.zarr", "attention_weight")[0].relative_to(tmp_path / "run.zarr").as_posix()
    with running(partial(_Static, directory=str(tmp_path))) as (home, end), serving(f"{home}run.zarr") as server:
        assert get(server, "0000/zarr.json")[0] == 200
        assert get(server, "0000/nothing")[0] == 404
        end()
        for status, body in (get(server, key)[:2], post(server, [[key, None]])[::2]):
            assert status == 502
            assert body.count(b"\n") == 1
            assert b"cannot be reached" in body
