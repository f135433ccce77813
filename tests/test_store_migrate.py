"""`lens migrate` through a made-up version 0, whose captures called the completion `answer`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import attnlens
from attnlens.schemas.errors import StoreError
from attnlens.schemas.problems import Problem
from attnlens.schemas.version import FORMAT_VERSION
from attnlens.store.files import read_document, write_document
from attnlens.store.manifest import document_digest
from attnlens.store.places import Place
from attnlens.store.tools import migrate as tool
from attnlens.store.verify import verify
from store_sample import plain_zip, tree_hash
from store_server import Served, serve
from test_cli_help import run

ARCHIVED = Path(__file__).parent / "stores" / "format-1.zarr"


def rewrite(root: Path, old: str, new: str, version: int) -> None:
    """Rename an attribute of every capture, with digests as they must be, and stamp a version."""
    store = read_document(root)
    ours = store["attributes"]["attnlens"]
    copies = store.get("consolidated_metadata", {}).get("metadata", {})
    for entry in ours["index"]:
        document = read_document(root / entry["id"])
        about = document["attributes"]["attnlens"]
        document["attributes"]["attnlens"] = about = {(new if key == old else key): about[key] for key in about}
        entry["digest"] = about["digest"] = document_digest(document)
        write_document(root / entry["id"], document)
        if entry["id"] in copies:
            copies[entry["id"]]["attributes"] = document["attributes"]
    ours["version"] = version
    ours["digest"] = document_digest(store)
    write_document(root, store)


def check_version_0(place: Place) -> list[Problem]:
    """As a reader of that version would: the digests."""
    found = [name for name in ("0000", "0001") if not place.document(name)["attributes"]["attnlens"].get("answer")]
    wrong = [
        name
        for name in ("", "0000", "0001")
        if document_digest(place.document(name)) != place.document(name)["attributes"]["attnlens"]["digest"]
    ]
    return [Problem(where=name, kind="metadata", message="is damaged") for name in {*found, *wrong}]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ARCHIVED, tmp_path / "old.zarr")
    rewrite(tmp_path / "old.zarr", "completion", "answer", 0)
    step = tool.Step(
        source=0,
        target=1,
        changes=("captures: `answer` is called `completion`",),
        apply=lambda root: rewrite(root, "answer", "completion", 1),
    )
    monkeypatch.setattr(tool, "STEPS", (step,))
    monkeypatch.setattr(tool, "READERS", {**tool.READERS, 0: check_version_0})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "old.zarr"


def documents(root: Path) -> dict[str, Any]:
    return {str(path.relative_to(root)): json.loads(path.read_text()) for path in root.rglob("zarr.json")}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_step_is_taken_and_the_original_kept(
    old: Path, packed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = plain_zip(old, old.with_name("old.zarr.zip")) if packed else old
    before = source.read_bytes() if packed else tree_hash(old)
    with pytest.raises(StoreError, match=f"format version is 0, expected {FORMAT_VERSION}"):
        attnlens.open(source)
    assert run(monkeypatch, "migrate", str(source), "-o", "new.zarr", "-q") == 0
    shown = capsys.readouterr().out
    assert "0 → 1: captures: `answer` is called `completion`" in shown
    assert "new.zarr: format version 1" in shown
    assert (source.read_bytes() if packed else tree_hash(old)) == before
    assert verify("new.zarr").problems == []
    assert documents(Path("new.zarr")) == documents(ARCHIVED)
    assert [c.metadata.completion for c in attnlens.open("new.zarr")] == [
        c.metadata.completion for c in attnlens.open(ARCHIVED)
    ]


def test_a_dry_run_says_what_would_change_and_writes_nothing(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_hash(old.parent)
    assert run(monkeypatch, "migrate", str(old), "-o", "new.zarr", "--dry-run") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["0 → 1: captures: `answer` is called `completion`", "nothing was written"]
    assert tree_hash(old.parent) == before


def test_steps_are_taken_one_after_the_other(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(old, "answer", "reply", -1)
    first = tool.Step(
        source=-1, target=0, changes=("`reply` is `answer`",), apply=lambda root: rewrite(root, "reply", "answer", 0)
    )
    monkeypatch.setattr(tool, "STEPS", (*tool.STEPS, first))
    monkeypatch.setattr(tool, "READERS", {**tool.READERS, -1: lambda place: []})
    report = tool.migrate(old)
    assert report.changes == ["-1 → 0: `reply` is `answer`", "0 → 1: captures: `answer` is called `completion`"]
    assert report.path == Path("old-format-1.zarr")
    assert documents(report.path) == documents(ARCHIVED)


def test_a_store_of_this_version_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "migrate", str(ARCHIVED), "-o", str(tmp_path / "new.zarr")) == 0
    assert "nothing to do, it has format version 1" in " ".join(capsys.readouterr().out.split())
    assert list(tmp_path.iterdir()) == []


def test_damage_is_not_vouched_for(old: Path) -> None:
    document = read_document(old / "0001")
    document["attributes"]["attnlens"]["answer"] = "forged"
    write_document(old / "0001", document)
    with pytest.raises(StoreError, match=r"format version 0\) is damaged, nothing was written"):
        tool.migrate(old, "new.zarr")
    assert not Path("new.zarr").exists()


def test_a_step_that_leaves_something_wrong_leaves_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tool.Step(source=0, target=1, changes=("x",), apply=lambda root: rewrite(root, "answer", "reply", 1))
    monkeypatch.setattr(tool, "STEPS", (broken,))
    target = next(path for path in old.glob("0000/attention_weight/c/**/0") if path.is_file())
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(StoreError, match="from format version 0 to 1 it did not come out whole, nothing was kept"):
        tool.migrate(old, "new.zarr")
    assert [path.name for path in old.parent.iterdir()] == ["old.zarr"]


@pytest.mark.parametrize(
    ("version", "remedy"), [(0, "read it with the attnlens that wrote it"), (2, "upgrade attnlens")]
)
def test_where_there_is_no_way_both_versions_are_named(tmp_path: Path, version: int, remedy: str) -> None:
    shutil.copytree(ARCHIVED, tmp_path / "run.zarr")
    rewrite(tmp_path / "run.zarr", "completion", "completion", version)
    with pytest.raises(StoreError, match=f"format version {version}, and there is no way to version 1.*: {remedy}"):
        tool.migrate(tmp_path / "run.zarr", tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists()


def test_a_store_behind_a_url_is_looked_at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Served(ARCHIVED.parent)) as served:
        assert run(monkeypatch, "migrate", f"{served.url}/{ARCHIVED.name}", "--dry-run") == 0
    assert f"version {FORMAT_VERSION}" in capsys.readouterr().out
