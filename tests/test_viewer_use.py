"""The page in use: by keyboard, by address, on hostile and unfinished stores, at both widths."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens import cli
from attnlens.render.viewer.server import ViewServer
from render_scene import HOSTILE
from render_store import make
from viewer_page import Page, chromium, serving, static_host

AXE = Path(attnlens.__file__).parent / "render" / "js" / "node_modules" / "axe-core" / "axe.min.js"
STRANGE = (
    *(text for text in HOSTILE if text != "\ud83d"),
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\u202egnp.exe",
    "z" * 10240,
    "&lt;",
    "\u202e<b>",
)
"""Texts of tokens; a lone surrogate no store can hold."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("used") / "run.zarr"
    make(path, n_prompt=30, n_generated=10)
    make(path, n_prompt=30, n_generated=10, append=True, seed=1)
    return path


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ViewServer]:
    with serving(store) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: ViewServer) -> Iterator[Page]:
    page = Page(browser, server.url)
    yield page
    assert page.wrong == []
    page.close()


def test_the_first_picture_takes_few_requests(page: Page) -> None:
    app = [path for path in page.requests if "/store/" not in path]
    assert len(app) <= 3
    assert len(page.requests) - len(app) <= 6
    before = len(page.requests)
    page.page.wait_for_timeout(500)  # neighbours are read ahead of time
    ahead = len(page.requests) - before
    page.page.keyboard.press("Tab")
    page.set(query=page.js("attnlens.state.query") - 1)
    assert len(page.requests) - before - ahead <= 1


def test_without_the_server_s_help_the_first_picture_takes_eight_requests(
    browser: Any, store: Path, tmp_path: Path
) -> None:
    """A static host answers one file at a time, with or without ranges."""
    for ranges in (True, False):
        with static_host(store.parent, ranges) as url:
            page = Page(browser, f"{url}viewer/index.html?store=/run.zarr")
            drawn = page.js("performance.getEntriesByName('attnlens:drawn')[0].startTime")
            early = page.js(
                """(drawn) => performance.getEntriesByType("resource")
                     .filter((one) => one.startTime < drawn && one.name.includes("run.zarr")).length""",
                drawn,
            )
            assert early <= 8, page.requests
            assert "token 38" in page.page.inner_text("h2")
            assert page.wrong == []
            page.close()


def test_every_control_is_used_by_keyboard_alone(page: Page) -> None:
    keys = page.page.keyboard
    seen: dict[str, str] = {}

    def focused() -> str:
        return str(
            page.js(
                """() => { const one = document.activeElement, label = one.closest("label")?.querySelector("span");
                  return one.getAttribute("aria-label") || label?.textContent || one.textContent; }"""
            )
        )

    def go(label: str, most: int = 60) -> None:
        for _ in range(most):
            if focused().startswith(label):
                return
            keys.press("Tab")
        raise AssertionError(f"{label!r} is not reached by Tab; reached {list(seen)}")

    def state(name: str) -> Any:
        page.js("() => attnlens.ready")
        return page.js("(name) => attnlens.state[name]", name)

    for _ in range(30):  # everything that Tab reaches shows that it has the focus
        keys.press("Tab")
        seen[focused()] = page.js("() => getComputedStyle(document.activeElement).outlineStyle")
    assert {style for label, style in seen.items() if label.strip() and label != "attnlens"} - {"none"}
    page.js("() => document.activeElement.blur()")

    go("capture")
    keys.press("ArrowDown")
    assert state("capture") == "0001"
    go("Cells")
    go("heads")
    keys.press("Control+a")
    keys.type("mean")
    keys.press("Enter")
    assert state("heads") == "mean"
    for name, label in (("scale", "scale"), ("text", "text"), ("cmap", "colours")):
        before = state(name)
        go(label)
        keys.press("ArrowDown")
        assert state(name) != before
    go("query")
    before = state("query")
    keys.press("ArrowLeft")
    assert state("query") == before - 1
    keys.press("Home")
    assert state("query") == 0
    keys.press("End")
    keys.press("PageDown")
    assert state("query") == before - 10
    keys.press("End")
    assert state("query") == before
    go("cells")
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    keys.press("ArrowLeft")
    row, column = state("at")
    assert (row, column) == (1, before - 1)
    assert f"layer 1, token {column}" in page.page.inner_text(".cell")
    wide = page.js("() => attnlens.view.board.w")
    keys.press("+")
    assert page.js("() => attnlens.view.board.w") > wide
    keys.press("-")
    keys.press("0")
    left = page.js("() => { attnlens.view.board.zoom(90); return attnlens.view.board.x; }")
    keys.press("Shift+ArrowLeft")
    assert page.js("() => attnlens.view.board.x") < left
    keys.press("Escape")
    assert state("at") is None
    go("token to look for")
    keys.type("Alice")
    page.page.wait_for_selector("aside table, aside [role=status] p")
    go("Heads")
    keys.press("Enter")
    page.page.wait_for_selector(".glyph")
    go("sort by")
    keys.press("ArrowDown")
    assert state("sort") == "entropy"
    go("layer ")
    keys.press("Enter")
    assert state("heads").isdecimal()
    page.js("() => document.activeElement.blur()")
    for view, field, name in (
        ("Map", "layer", "map"),
        ("Map", "head", "map"),
        ("Text", "layer", "layer"),
        ("Compare", "difference", "diff"),
    ):
        go(view)
        keys.press("Enter")
        assert state("view") == view.lower()
        go(field)
        before = state(name)
        keys.press("Space" if name == "diff" else "ArrowDown")
        assert state(name) != before
        page.js("() => document.activeElement.blur()")
    go("Cells")
    keys.press("Enter")
    for label, ending in (("Save PNG", "png"), ("Save SVG", "svg")):
        go(label)
        with page.page.expect_download() as waiting:
            keys.press("Enter")
        assert waiting.value.suggested_filename.endswith(ending)
    for label in ("Copy link", "Copy command"):
        page.js("() => document.activeElement.blur()")
        go(label)
        keys.press("Enter")
        page.page.wait_for_selector(".said:not(:empty)")


def test_axe_finds_nothing_serious(browser: Any, server: ViewServer) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make viewer")
    for scheme, width in (("light", 1280), ("dark", 390)):
        page = Page(browser, server.url, width=width, color_scheme=scheme, bypass_csp=True)
        page.page.add_script_tag(path=str(AXE))
        for view in ("cells", "map", "text", "compare"):
            page.set(
                view=view,
                sort="layer" if view == "cells" else None,
                at=[1, 36] if view == "cells" else None,
                find="Alice",
            )
            page.page.wait_for_timeout(200)
            found = page.js("async () => (await axe.run()).violations")
            serious = [
                (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
            ]
            assert serious == [], (scheme, width, view)
        page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(browser: Any, server: ViewServer, width: int) -> None:
    page = Page(browser, server.url, width=width)
    for view in ("cells", "map", "text", "compare"):
        page.set(view=view, at=[1, 36] if view == "cells" else None, sort="layer")
        page.page.wait_for_timeout(100)
        assert page.js("() => document.documentElement.scrollWidth") <= width, view
    page.close()


def test_the_whole_state_is_in_the_address(browser: Any, server: ViewServer, page: Page) -> None:
    wanted = {
        "capture": "0001", "query": 33, "heads": "0,2:mean", "scale": "log", "text": "entropy", "cmap": "viridis",
        "at": [2, 31], "sort": "sink", "find": "Alice",
    }  # fmt: skip
    page.set(**wanted)
    page.js("() => { attnlens.view.board.zoom(90); attnlens.view.board.pan(-3); }")
    place = page.js("() => [attnlens.view.board.x, attnlens.view.board.w]")
    link = page.js("() => attnlens.link")
    other = Page(browser, link)
    for name, value in wanted.items():
        assert other.js("(name) => attnlens.state[name]", name) == value
    assert other.js("() => [attnlens.view.board.x, attnlens.view.board.w]") == pytest.approx(place, abs=0.01)
    assert other.js("() => attnlens.view.board.scene.selected") == [2, 31]
    page.page.wait_for_timeout(250)
    assert page.page.url == link
    other.js("() => { location.hash = '#query=31&heads=max'; }")
    other.page.wait_for_timeout(50)
    other.js("() => attnlens.ready")
    assert other.js("() => [attnlens.state.query, attnlens.state.heads, attnlens.state.scale]") == [31, "max", "raw"]
    assert other.wrong == []
    other.close()


@pytest.mark.parametrize(
    "fragment",
    [
        "#query=99999&view=nothing&scale=x&text=y&cmap=z&map=9:99&layer=77&at=999,999&cell=-5&from=1e9",
        "#query=NaN&cell=Infinity&at=%3Cb%3E&__proto__=1&row=-9",
    ],
)
def test_addresses_of_strangers(browser: Any, server: ViewServer, fragment: str) -> None:
    page = Page(browser, server.url + fragment)
    assert page.page.inner_text(".notice") == ""
    assert page.js("() => attnlens.state.query") == 38
    assert page.wrong == []
    page.close()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("heads=9", "heads 9: 9 is out of range, there are 4 heads"),
        ("heads=top:9:entropy", "expected 1 to 4 heads"),
        ("scale=value-norm", "needs the lengths of value vectors"),
        ("capture=0007", "has no capture 0007; it has 0000, 0001"),
    ],
)
def test_errors_say_what_and_what_to_do(browser: Any, server: ViewServer, state: str, said: str) -> None:
    page = Page(browser, f"{server.url}#{state}")
    assert said in page.page.inner_text(".notice")
    page.set(heads="max", scale="raw", capture="0000")
    assert page.page.inner_text(".notice") == ""
    page.close()


def test_the_copied_command_draws_what_is_shown(
    page: Page, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(store.parent)
    for state in (
        {"query": 33, "heads": "mean", "scale": "log"},
        {"view": "map", "map": "1.2", "scale": "raw", "cell": 60},
    ):
        page.set(**state)
        line = shlex.split(page.js("() => attnlens.controls.command()"))
        assert line[:2] == ["lens", "render"]
        monkeypatch.setattr(
            sys, "argv", [*line, "-o", str(tmp_path / str(state.get("view"))), "--dpi", "40", "--quiet", "--json"]
        )
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        assert json.loads(capsys.readouterr().out)["count"] == 1


def test_a_layer_and_its_head_have_a_dot_between_them(page: Page) -> None:
    for said in ("1.2", "1:2"):
        page.set(view="map", map=said, at=None)
        assert page.js("() => attnlens.state.map") == "1.2"
        page.page.wait_for_function("() => location.hash.includes('map=1.2')", timeout=5000)
        assert "--map 1.2 " in page.js("() => attnlens.controls.command()")
    page.set(view="cells", map="0:0")


def test_hostile_tokens_are_text(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.zarr"
    make(path, words=STRANGE, n_prompt=len(STRANGE), n_generated=6)
    with serving(path) as server:
        for width in (1280, 390):
            page = Page(browser, server.url, width=width)
            for view in ("cells", "text", "map"):
                page.set(view=view, sort="entropy", find="<img", at=[0, 3] if view == "cells" else None)
            page.set(view="cells", query=len(STRANGE) + 2)
            for column in range(0, len(STRANGE), 3):
                shown = page.hover(1, column)
                assert len(shown["lens"]) < 400
            page.set(at=[1, 5])
            with page.page.expect_download() as waiting:
                page.page.click("text=Save SVG")
            drawing = Path(waiting.value.path()).read_text(encoding="utf-8")
            assert "<script" not in drawing
            assert "<img" not in drawing
            assert page.js("() => document.querySelectorAll('img, body script').length") == 0
            assert page.js("() => document.documentElement.scrollWidth") <= width
            visible = page.js("() => document.body.textContent")
            assert "\u202e" not in visible
            assert "z" * 200 not in visible
            assert page.wrong == []
            page.close()


def test_an_unfinished_store_says_what_is_missing(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "part.zarr"
    make(path, broken_off=7, without_attention=(1,), n_prompt=5, n_generated=6)
    make(path, append=True, lens=False)
    with serving(path) as server:
        page = Page(browser, server.url)
        notes = page.page.inner_text(".notes")
        assert "This capture is partial: 7 of 11 tokens have rows so far (broken off)." in notes
        assert "1 of 3 layers have no attention" in notes
        assert page.js("() => attnlens.state.query") == 6
        assert page.js("() => attnlens.view.board.scene.level(1, 2)") == -1
        page.set(capture="0001")
        assert "There is no lens: the output head was not found." in page.page.inner_text(".notes")
        assert page.js("() => attnlens.view.board.scene.text(0, 2)") != ""
        assert page.js("() => attnlens.view.board.scene.text(2, 2)") == ""
        page.set(text="entropy")
        assert "there is no lens (the output head was not found)" in page.page.inner_text(".notice")
        page.close()


def test_damage_is_told(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.zarr"
    make(path)
    shard = path / "0000" / "attention_max" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 255
    shard.write_bytes(data)
    with serving(path) as server:
        page = Page(browser, server.url)
        assert "0000/attention_max cannot be read" in page.page.inner_text(".notice")
        shard.unlink()
        page.js("() => { attnlens.stores.forget(); attnlens.side.store.bytes.forget(); return attnlens.reload(); }")
        assert "attention_max/c/0/0/0 is missing, the capture's manifest lists it" in page.page.inner_text(".notice")
        page.close()


def test_the_panel_tells_what_the_store_holds(page: Page, store: Path) -> None:
    group: Any = zarr.open_group(store / "0000", mode="r")
    row, column = 1, 33
    page.set(capture="0000", view="cells", query=38, heads="max", scale="raw", at=[row, column])
    page.page.wait_for_selector(".cell ol.bars li")
    later = group["attention_max"][:, row, column]  # queries 29 …
    ranked = sorted(((value, 29 + place) for place, value in enumerate(later) if value > 0), reverse=True)[:8]
    shown = page.js(
        """() => [...document.querySelectorAll(".cell ol.bars li")].map((item) => {
             const query = item.querySelector("button").textContent.split(" ")[0];
             return [Number(item.querySelector("data").value), Number(query)]; })"""
    )
    assert [value for value, _ in shown] == [float(value) for value, _ in ranked]
    assert {query for _, query in shown} == {query for _, query in ranked}
    points = page.js(
        """() => [...document.querySelectorAll(".cell circle title")]
             .map((title) => title.textContent.match(/\\d+: (.*)/)[1])"""
    )
    stored = set(group["lens_probability"][:, column].ravel().tolist()) | {0.5}  # 0.5 is what next came
    assert {np.float32(point) for point in points} <= stored
    assert len(points) > 8


def test_search_finds_where_a_token_first_appears(page: Page, store: Path) -> None:
    group: Any = zarr.open_group(store / "0000", mode="r")
    ids, last = group["lens_token"][...], 38
    page.set(capture="0000", query=last, find="alice")  # word 1, " Alice"
    page.page.wait_for_selector("aside table")
    rows = page.js("() => [...document.querySelectorAll('aside tbody tr')].map((row) => row.innerText.split('\\t'))")
    expected = {}
    for column in range(last + 1):
        depths = [depth for depth in range(4) if 1 in ids[depth, column]]
        top = [depth for depth in range(4) if ids[depth, column, 0] == 1]
        if depths:
            first = top[0] if top and top[0] <= depths[0] else depths[0]
            expected[column] = (first, top[0] if top else None)
    assert {int(row[0].split()[0]) for row in rows} == set(expected)
    for where, first, top in rows:
        column = int(where.split()[0])
        assert (int(first.split()[0]), None if top.strip() == "–" else int(top)) == expected[column]


def test_a_difference_is_b_less_a_on_the_columns_that_both_have(browser: Any, tmp_path: Path) -> None:
    a = make(tmp_path / "a.zarr", ids=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], n_prompt=6, n_generated=4)
    b = make(tmp_path / "b.zarr", ids=[0, 1, 2, 9, 9, 3, 4, 5, 6, 7, 8], n_prompt=7, n_generated=4, seed=4)
    with serving(tmp_path / "a.zarr", tmp_path / "b.zarr") as server:
        page = Page(browser, f"{server.url}#view=compare&diff=true&query=7&with=b.zarr%230000")
        columns = page.js("() => attnlens.view.first.scene.columns")
        assert columns == [0, 1, 2, 3, 4, 5, 6, 7]
        shown = page.js(
            """() => { const { scene } = attnlens.view.first;
              return [0, 1, 2].map((row) => scene.columns.map((_, column) => scene.value(row, column))); }"""
        )
        there = [0, 1, 2, 5, 6, 7, 8, 9]
        before, after = a.weights.max(axis=1)[:, 7, columns], b.weights.max(axis=1)[:, 9, there]
        assert shown == (after.astype(np.float32) - before.astype(np.float32)).astype(np.float64).tolist()
        page.set(diff=False)
        page.js("() => { attnlens.view.first.zoom(150); attnlens.view.first.pan(-99); attnlens.view.first.pan(4); }")
        assert page.js("() => attnlens.view.second.x - attnlens.view.first.x") == pytest.approx(2)  # the same tokens
        assert page.js("() => attnlens.controls.command()").startswith("lens diff a.zarr#0000 b.zarr#0000 --queries 7")
        assert page.wrong == []
        page.close()


def test_captures_are_named_by_an_index_in_arrays(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnlens.store.lists.INLINE_BYTES", 0)
    make(tmp_path / "run.zarr")
    make(tmp_path / "run.zarr", append=True, seed=1)
    about = json.loads((tmp_path / "run.zarr/zarr.json").read_bytes())["attributes"]["attnlens"]
    index: Any = zarr.open_group(tmp_path / "run.zarr" / about["lists"]["index"]["folder"], mode="r")
    texts = [str(text) or str(prompt) for text, prompt in zip(index["completion"][:], index["prompt"][:], strict=True)]
    wanted = [
        f"{name} {' '.join(text.split())[:40]}".strip() for name, text in zip(about["planned"], texts, strict=True)
    ]
    with serving(tmp_path / "run.zarr") as server:
        page = Page(browser, server.url)
        shown = page.js("async () => (await attnlens.stores.list()).map(([, words]) => words.trim())")
        assert shown == wanted
        assert all(len(words) > len("0000 ") for words in shown)
        next((tmp_path / "run.zarr").glob("index-*/prompt/c/0")).write_bytes(b"another")
        with pytest.raises(Exception, match="its index cannot be read"):
            page.js("async () => { attnlens.stores.forget(); await attnlens.stores.list(); }")
        page.close()
    folder = tmp_path / "run.zarr" / about["lists"]["index"]["folder"]
    (folder / "prompt/c/0").write_bytes((folder / "model/c/0").read_bytes())  # texts as well, but others
    with static_host(tmp_path, True) as home:
        page = Page(browser, f"{home}viewer/index.html?store=/run.zarr")
        with pytest.raises(Exception, match="prompt/c/0 is not the file that was written"):
            page.js("async () => { attnlens.stores.forget(); await attnlens.stores.list(); }")
        page.close()
