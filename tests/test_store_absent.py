"""A capture that is not finished has no manifest: a file of it that is missing is absent, and not its fill value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import attnlens
from attnlens.render.pictures import render
from attnlens.schemas.errors import StoreError
from attnlens.store.tools.crop import crop
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.npz import export_npz
from attnlens.store.verify import verify
from render_store import make
from test_store_evidence import Rich
from viewer_page import Page, chromium, serving

TIMELINE = ["token", "token_id", "token_text", "token_special", "token_bytes", "token_byte_offset"]
COORDINATES = ["query", "key", "layer", "head", "depth", "generated"]
LENS = ["vocabulary_id", "vocabulary_text", "next_rank", "next_probability", "lens_entropy"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("partial") / "run.zarr"
    make(path, broken_off=9)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run.zarr")


def lose(store: Path, name: str) -> None:
    found = sorted(path for path in (store / "0000" / name / "c").rglob("*") if path.is_file())
    found[0].unlink()


@pytest.mark.parametrize("name", [*TIMELINE, *COORDINATES, *LENS])
def test_a_missing_file_of_an_unfinished_capture_is_told_and_not_read_as_fill_values(name: str, store: Path) -> None:
    lose(store, name)
    with pytest.raises(StoreError, match=rf"0000/{name}: chunk c/0(/0)? is damaged \(it is missing\)"):
        attnlens.open(store)[0][name][...]
    found = [problem.where for problem in verify(store).problems if problem.message == "is missing"]
    assert [where.startswith(f"0000/{name}/c/0") for where in found] == [True]


def test_arrays_that_few_captures_have_are_looked_at_as_well(tmp_path: Path) -> None:
    Rich(n_prompt=9, n_generated=4).write(tmp_path / "run.zarr")
    document = tmp_path / "run.zarr" / "0000" / "zarr.json"
    text = json.loads(document.read_text())
    about = text["attributes"]["attnlens"]
    about |= {"status": "partial", "manifest": None, "digest": None, "front": None}
    document.write_text(json.dumps(text))
    assert [problem.where for problem in verify(tmp_path / "run.zarr").problems] == ["0000"]  # as the index has it
    for name in ("residual", "tracked_id", "tracked_text", "tracked_rank", "next_rank_tuned"):
        store = shutil.copytree(tmp_path / "run.zarr", tmp_path / f"{name}.zarr")
        lose(store, name)
        with pytest.raises(StoreError, match=rf"0000/{name}: .*it is missing"):
            attnlens.open(store)[0][name][...]
        assert f"0000/{name}/c/0" in "".join(problem.where for problem in verify(store).problems)


@pytest.mark.parametrize("name", ["token_special", "token_text", "token_bytes", "vocabulary_text"])
def test_every_tool_tells_of_it(name: str, store: Path, tmp_path: Path) -> None:
    lose(store, name)
    out = tmp_path / "out"
    for tool in (
        lambda: render(store, out),
        lambda: crop(store, out / "crop.zarr"),
        lambda: crop(store, out / "crop.zarr", keep=Keep(tokens="0:4")),
        lambda: export_hdf5(store, out / "run.h5"),
        lambda: export_npz(store, out / "run.npz"),
    ):
        with pytest.raises(StoreError, match=rf"0000/{name}: .*is missing"):
            tool()
        assert not out.exists() or list(out.iterdir()) == []


def test_the_page_tells_of_it(store: Path) -> None:
    with chromium() as browser:
        with serving(store) as server:
            page = Page(browser, server.url)
            assert page.page.inner_text(".notice") == ""
            page.close()
        lose(store, "token_special")
        with serving(store) as server:
            opened = browser.new_page()
            opened.goto(server.url)
            opened.get_by_text("0000/token_special/c/0 is missing").first.wait_for()
            opened.close()


def test_what_is_longer_than_what_was_committed_may_lack_files(store: Path) -> None:
    """Arrays of a running capture are made for the longest timeline; what comes later has no file yet."""
    capture = attnlens.open(store)[0]
    assert len(capture["vocabulary_id"][:]) == len(capture["vocabulary_text"][:])
    assert len(capture["token_bytes"][:]) >= len(b"".join(map(capture.token_bytes, range(capture.n_token))))
    assert not capture.token_special[1:].any()
    assert capture.token_special[0]


def test_what_a_crop_of_an_unfinished_capture_left_out_stays_absent(store: Path, tmp_path: Path) -> None:
    """A crop has a manifest, which tells: token_special of its tokens is false, and no file says so."""
    part = crop(store, tmp_path / "part.zarr", keep=Keep(tokens="3:6")).path
    found = attnlens.open(part)[0]
    np.testing.assert_array_equal(found.token_special, np.zeros(found.n_token, bool))
    lose(part, "token_text")
    found = attnlens.open(part)[0]
    with pytest.raises(StoreError, match=r"0000/token_text: .*is missing: the manifest lists it"):
        found.token_text  # noqa: B018
