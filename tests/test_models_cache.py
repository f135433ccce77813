"""The cache: made once, checked, rebuilt when damaged, safe among processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from attnlens.capture.models.cache import cache_folder, cached, is_whole


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNLENS_CACHE", str(tmp_path / "cache"))


def make(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "config").write_text("c")
    with (folder.parent.parent / "made").open("a") as log:
        log.write("x")


def times_made() -> int:
    return len((cache_folder() / "made").read_text())


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ATTNLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "attnlens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "attnlens"


def test_made_once() -> None:
    assert cached("thing", make) == cached("thing", make) == cache_folder() / "thing"
    assert times_made() == 1
    assert sorted(path.name for path in cache_folder().iterdir()) == ["made", "thing"]


@pytest.mark.parametrize("what", ["flip", "cut", "gone", "seal gone", "seal empty", "seal damaged"])
def test_damage_is_found_and_mended(what: str) -> None:
    folder = cached("thing", make)
    if what == "flip":
        (folder / "weights").write_bytes(b"w" * 999 + b"v")
    elif what == "cut":
        (folder / "weights").write_bytes(b"w" * 10)
    elif what == "gone":
        (folder / "config").unlink()
    elif what == "seal gone":
        (folder / "attnlens.json").unlink()
    else:
        (folder / "attnlens.json").write_text('{"sha256": {}}' if what == "seal empty" else "{")
    assert not is_whole(folder)
    assert is_whole(cached("thing", make))
    assert times_made() == 2
    assert sorted(path.name for path in cache_folder().iterdir()) == ["made", "thing"]


def test_a_failed_maker_leaves_nothing() -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("thing", fail)
    assert list(cache_folder().iterdir()) == []


def slow(folder: Path) -> None:
    (folder / "weights").write_text(str(os.getpid()))
    time.sleep(0.2)


def worker(name: str) -> bool:
    return is_whole(cached(name, slow))


def test_several_processes_at_once() -> None:
    (cache_folder() / "thing").mkdir(parents=True)  # damaged from the start
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(worker, ["thing"] * 3) == [True] * 3
    assert [path.name for path in cache_folder().iterdir()] == ["thing"]
