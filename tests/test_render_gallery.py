"""The page beside the pictures, read as a file and used in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from attnlens.render.gallery.pages import Entry, contents, page
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from browser import open_page
from render_scene import HOSTILE
from render_store import make


def test_the_page_allows_itself_only_what_it_has() -> None:
    text = page("title", [Entry(label="a", files=("attn_0.png",))]).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "http:" not in text
    assert "https:" not in text


def test_texts_are_escaped() -> None:
    text = page(HOSTILE[16], [Entry(label=label, files=("a.png",)) for label in HOSTILE]).decode()
    rest = re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)
    assert "<svg" not in rest
    assert "<script" not in rest
    assert "<img src" not in rest
    assert rest.count("<li>") == len(HOSTILE)
    assert "<b>" not in contents("<b>", [("0000", "<b>")]).decode()


def test_keys_walk_through_tokens_and_windows(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr")
    render(made.path, tmp_path / "out", options=RenderOptions(dpi=30, window=4, step=2, queries="6:10"), gallery=True)
    index = tmp_path / "out" / "index.html"
    listed = re.findall(r'href="([^"]+)"', index.read_text())
    assert sorted(listed) == sorted(path.name for path in index.parent.glob("*.png"))
    with open_page() as (browser, wrong):
        browser.goto(index.as_uri())

        def shown() -> str:
            browser.evaluate("picture.decode()")  # the page's own policy forbids what wait_for_function does
            return str(browser.evaluate("picture.src.split('/').pop()"))

        def press(key: str) -> str:
            browser.keyboard.press(key)
            return shown()

        assert shown() == "attn_0_0.png"
        assert press("ArrowDown") == "attn_0_1.png"
        assert press("ArrowRight") == "attn_1_1.png"
        assert press("Shift+ArrowRight") == "attn_1_2.png"
        assert press("Shift+ArrowLeft") == "attn_1_1.png"
        assert press("ArrowUp") == "attn_1_0.png"
        assert press("ArrowLeft") == "attn_0_0.png"
        assert press("End") == "attn_3_0.png"
        assert press("Home") == "attn_0_0.png"
        assert press("ArrowLeft") == press("ArrowUp") == "attn_0_0.png"
        assert "window 1 of" in browser.inner_text("#where")
        browser.click("a[href='attn_2_1.png']")
        assert shown() == "attn_2_1.png"
        assert browser.url.endswith("#attn_2_1.png")
        browser.goto("about:blank")
        browser.goto(f"{index.as_uri()}#attn_1_1.png")
        assert shown() == "attn_1_1.png"
        assert wrong == []


def test_nothing_in_a_label_runs(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(
        page(HOSTILE[17], [Entry(label=label, files=("a.pdf",)) for label in HOSTILE])
    )
    with open_page() as (browser, wrong):
        browser.goto((tmp_path / "index.html").as_uri())
        for _ in HOSTILE:
            browser.keyboard.press("ArrowRight")
        assert browser.inner_text("#open") == "open a.pdf"
        assert browser.evaluate("document.scripts.length") == 1
        assert wrong == []


def test_several_captures_have_a_page_over_them(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    make(tmp_path / "run.zarr", append=True, seed=1)
    render(tmp_path / "run.zarr", tmp_path / "out", options=RenderOptions(dpi=30), gallery=True)
    assert re.findall(r'href="([^"]+)"', (tmp_path / "out" / "index.html").read_text()) == [
        "0000/index.html",
        "0001/index.html",
    ]
    assert (tmp_path / "out" / "0001" / "index.html").exists()
