"""The page is made from what Python says, and is one file of script without anything fetched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attnlens
from attnlens.render.viewer.assets import asset
from attnlens.render.viewer.contract import contract

SOURCES = Path(attnlens.__file__).parent / "render" / "js"


def test_names_and_colours_of_the_page_are_those_of_python() -> None:
    """Else: make viewer."""
    assert (SOURCES / "contract.js").read_text(encoding="utf-8") == contract()


def test_the_page_was_built_from_them() -> None:
    maps = re.findall(r'"([A-Za-z0-9+/]{1024})"', (SOURCES / "contract.js").read_text(encoding="utf-8"))
    assert len(maps) == 5
    script = asset("app.js").decode()
    assert all(table in script for table in maps)


def test_the_page_fetches_nothing_of_others() -> None:
    for name in ("app.js", "app.css", "index.html"):
        text = asset(name).decode()
        assert not re.search(r"""(?:src|href|url|import)\s*[(=]\s*["']?https?:""", text)
        assert "eval(" not in text
        assert "innerHTML" not in text
    assert not re.search(rb"</script|<!--", asset("app.js"))


def test_no_framework() -> None:
    package = json.loads((SOURCES / "package.json").read_text())
    assert set(package["dependencies"]) == {"zarrita", "fzstd", "@noble/hashes"}
