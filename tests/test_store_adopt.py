"""Captures that are finished when their process dies, and not yet published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attnlens.store.verify import verify
from batch_runs import assert_same, prompts, run


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "run.zarr"
    assert run(path, prompts(2)).left == 0
    return path


def killed_before_it_is_published(truth: Path, path: Path) -> Path:
    """A copy of a store, with its second capture as it is in the second before it is published."""
    shutil.copytree(truth, path)
    document = path / "0001" / "zarr.json"
    about = json.loads(document.read_bytes())
    document.rename(document.with_name("zarr.0123456789abcdef.partial"))
    about["attributes"]["attnlens"] |= {"status": "partial", "digest": None, "manifest": None, "front": None}
    del about["consolidated_metadata"]
    document.write_text(json.dumps(about))
    root = json.loads((path / "zarr.json").read_bytes())
    root["attributes"]["attnlens"]["index"] = None
    del root["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(root))
    return document


def test_a_finished_capture_is_published_by_the_next_run(truth: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    document = killed_before_it_is_published(truth, path)
    before = document.with_name("zarr.0123456789abcdef.partial").read_bytes()
    report = run(path, prompts(2), resume=True)
    assert (len(report.kept), report.captures) == (2, [])
    assert document.read_bytes() == before
    assert not list(path.rglob("*.partial"))
    assert not verify(path).problems
    assert_same(path, truth)


def flipped(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def chunk(folder: Path, name: str) -> Path:
    return next(file for file in sorted((folder / name).rglob("*")) if file.is_file() and file.name != "zarr.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: chunk(folder, "attention_weight").unlink(),
        lambda folder: flipped(chunk(folder, "attention_weight")),
        lambda folder: chunk(folder, "lens_token").write_bytes(b""),
        lambda folder: flipped(chunk(folder, "manifest_sha256")),
        lambda folder: shutil.rmtree(folder / "manifest_file"),
        lambda folder: (folder / "token_id" / "more").write_bytes(b"x"),
        lambda folder: (folder / "zarr.0123456789abcdef.partial").write_bytes(b"{"),
        lambda folder: (folder / "zarr.0123456789abcdef.partial").write_bytes(b""),
    ],
)
def test_one_that_a_power_cut_has_damaged_is_captured_again(
    damage: Callable[[Path], object], truth: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.zarr"
    damage(killed_before_it_is_published(truth, path).parent)
    report = run(path, prompts(2), resume=True)
    assert (len(report.kept), len(report.captures)) == (1, 1)
    assert not list(path.rglob("*.partial"))
    assert not verify(path).problems
    assert_same(path, truth)
