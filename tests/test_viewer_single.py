"""A store and its page as one file, and inside a notebook: nothing is fetched, nothing but its own script runs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import attnlens
from attnlens.render.viewer import notebook
from attnlens.render.viewer.assets import asset
from attnlens.render.viewer.single import export_html
from attnlens.schemas.errors import AttnlensError
from attnlens.store.reader import open_store
from render_store import make
from test_cli_help import run
from viewer_page import Page, chromium

NAMES = {"values": "() => Array.from({ length: 3 }, (_, row) => attnlens.view.board.scene.value(row, 4))"}


def policy(text: str) -> dict[str, str]:
    found = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert found
    return dict(rule.strip().split(" ", 1) for rule in html.unescape(found[1]).split(";"))


def test_one_file_opens_offline(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr", words=("<s>", "</script>", "<!--", "ok", " \u4e2d"), n_prompt=9)
    make(tmp_path / "run.zarr", append=True, seed=2)
    out = tmp_path / "one.html"
    report = export_html(tmp_path / "run.zarr", out)
    assert report.bytes == out.stat().st_size
    assert report.captures == ("0000", "0001")
    with chromium() as browser:
        page = Page(browser, out.as_uri(), offline=True)
        assert page.requests == [out.as_uri().removeprefix("file://")]
        page.set(query=9)
        weights = made.weights[:, :, 9, 4].max(axis=1).astype(np.float64)
        assert page.js(NAMES["values"]) == weights.tolist()
        assert page.hover(1, 4)["attention"] == np.format_float_positional(np.float16(weights[1]), trim="-")
        for view in ("map", "text", "compare", "cells"):
            page.set(view=view)
            assert page.page.inner_text(".notice") == ""
        with page.page.expect_download():
            page.page.click("text=Save PNG")
        page.page.wait_for_timeout(200)
        assert page.js("() => location.hash") != ""
        assert [path for path in page.requests if path.startswith(("/", "http"))][1:] == []
        assert page.wrong == []
        page.close()


def test_its_policy_names_its_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr", words=("<s>", "</script><script>alert(1)</script>", "a"))
    export_html(tmp_path / "run.zarr", tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    rules = policy(text)
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()}'"
    assert len(re.findall("<script", re.sub("<script>.*?</script>", "", text, flags=re.DOTALL))) == 1  # the data


def test_only_what_the_page_reads_is_inside(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    make(tmp_path / "run.zarr", append=True, lens=False)
    export_html(tmp_path / "run.zarr", tmp_path / "one.html", ["0001"])
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    data = re.search(r'id="attnlens-files">(.*?)</script>', text)
    assert data
    files = json.loads(data[1])["run.zarr"]
    assert {key.split("/")[0] for key in files} == {"zarr.json", "0001"}
    assert not [key for key in files if "manifest" in key or key.endswith("/zarr.json")]
    assert base64.b64decode(files["0001/token_text/c/0"]) == (tmp_path / "run.zarr/0001/token_text/c/0").read_bytes()
    assert json.loads(base64.b64decode(files["zarr.json"]))["attributes"]["attnlens"]["planned"] == ["0001"]


def test_the_demo_capture_is_small_enough_for_a_mail(tmp_path: Path) -> None:
    """30 layers, 9 heads, 54 tokens of numbers that hardly compress: no smaller than the real one."""
    make(tmp_path / "run.zarr", n_layer=30, n_head=9, n_prompt=47, n_generated=7)
    assert export_html(tmp_path / "run.zarr", tmp_path / "one.html").bytes <= 2_500_000


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "export", "--html", "run.zarr") == 0
    assert capsys.readouterr().out.startswith("run.html: 0.")
    assert run(monkeypatch, "export", "--html", "run.zarr", "-o", "new/one.html") == 0
    assert run(monkeypatch, "export", "--html", "run.zarr", "-o", "new/one.html/two.html") == 1
    assert run(monkeypatch, "export", "run.zarr") == 1
    assert run(monkeypatch, "export", "--html", "run.zarr", "-o", "two.html", "--capture", "0009") == 1
    said = capsys.readouterr().err.splitlines()
    assert "cannot write new/one.html/two.html" in said[0]
    assert ".html" in said[1]
    assert "has no capture '0009'" in said[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "run.html", "run.zarr"]


def test_a_file_that_is_there_is_replaced_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make(tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    Path("run.html").write_text("mine")
    assert run(monkeypatch, "export", "--html", "run.zarr") == 1
    assert capsys.readouterr().err == "lens: run.html exists: give another -o, or --overwrite\n"
    assert Path("run.html").read_text() == "mine"
    assert run(monkeypatch, "export", "--html", "run.zarr", "--overwrite") == 0
    assert Path("run.html").read_text().startswith("<!doctype html>")


def test_a_notebook_shows_a_sandboxed_frame(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    frame = capture.view(height=500, query=8, heads="mean")._repr_html_()
    assert 'sandbox="allow-scripts allow-downloads"' in frame
    (tmp_path / "notebook.html").write_text(f"<!doctype html><title>n</title>{frame}", encoding="ascii")
    with chromium() as browser:
        context = browser.new_context(offline=True, viewport={"width": 1000, "height": 600})
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "notebook.html").as_uri())
        inside = page.frames[1]
        inside.wait_for_selector("h2:not(:empty)")
        assert inside.inner_text("h2").startswith("token 8")
        assert inside.evaluate("attnlens.state.heads") == "mean"
        assert inside.evaluate("origin") == "null"
        inside.click("text=Map")
        assert inside.evaluate("attnlens.ready.then(() => attnlens.state.view)") == "map"
        assert wrong == []
        context.close()


def test_the_page_is_in_a_notebook_once(tmp_path: Path) -> None:
    """A notebook keeps every form of an output: text/plain comes from repr, text/html from the frame."""
    make(tmp_path / "run.zarr")
    shown = attnlens.open(tmp_path / "run.zarr")[0].view()
    assert len(repr(shown)) < 100
    assert "capture 0000 of run" in repr(shown)
    script = json.dumps({"text/plain": repr(shown), "text/html": shown._repr_html_()}).count("attnlens-files")
    assert script == 1 + asset("app.js").decode().count("attnlens-files")


def test_a_capture_that_is_too_large_for_a_notebook_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "run.zarr", n_prompt=100, n_generated=5)
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    size = len(capture.view().page)
    assert notebook.LARGEST == 20 * 2**20
    monkeypatch.setattr(notebook, "LARGEST", size - 32768)
    with pytest.raises(AttnlensError, match=r"a notebook takes: look at it with `lens view`.*crop --lite"):
        capture.view()


def test_a_capture_of_a_bare_reader_cannot_be_shown(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    with pytest.raises(AttnlensError, match=r"attnlens\.open"):
        open_store(tmp_path / "run.zarr")[0].view()
