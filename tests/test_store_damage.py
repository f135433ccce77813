"""Stores that are damaged, foreign or of another version: the reader refuses, `verify` names array and chunk."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.schemas.errors import AttnlensError, StoreError
from attnlens.store.descriptions import Limits
from attnlens.store.info import describe
from attnlens.store.reader import open_store
from attnlens.store.verify import verify
from store_sample import Sample

SHARD = "0000/attention_weight/c/0/0/1/0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    Sample(n_prompt=70, n_generated=5, n_layer=2, sliding={1: 9}).write(path)
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run.zarr"))


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((path / "zarr.json").read_text())
    edit(document)
    (path / "zarr.json").write_text(json.dumps(document))


def test_a_whole_store_passes(store: Path) -> None:
    report = verify(store)
    assert report.problems == []
    assert report.passed
    assert report.captures == {"0000": "complete"}
    assert report.checked["attention rows"] == 74 * 2 * 2
    assert report.checked["lens tokens"] == 74
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_a_flipped_byte_is_found_and_named(store: Path) -> None:
    data = bytearray((store / SHARD).read_bytes())
    data[40] ^= 1
    (store / SHARD).write_bytes(data)
    with pytest.raises(StoreError, match=r"0000/attention_weight: chunk c/0/0/1/0 is damaged .*lens verify"):
        attnlens.open(store)[0].attention.rows(range(64, 74))
    attnlens.open(store)[0].attention.rows(range(64))  # the other file is whole
    problems = {(problem.where, problem.kind) for problem in verify(store).problems}
    assert {(SHARD, "manifest"), (SHARD, "chunk")} <= problems


@pytest.mark.parametrize("size", [0, 3, 200])
def test_a_truncated_shard_is_found_and_named(store: Path, size: int) -> None:
    (store / SHARD).write_bytes((store / SHARD).read_bytes()[:size])
    with pytest.raises(StoreError, match="attention_weight: chunk c/0/0/1/0 is damaged"):
        attnlens.open(store)[0].attention.rows(72)
    assert SHARD in {problem.where for problem in verify(store).problems}


@pytest.mark.parametrize(
    "name", [SHARD, "0000/lens_token/c/0/0/0", "0000/attention_max/c/0/0/0", "0000/token_id/zarr.json"]
)
def test_a_deleted_file_is_found_and_named(store: Path, name: str) -> None:
    (store / name).unlink()
    assert (name, "manifest") in {(problem.where, problem.kind) for problem in verify(store).problems}


def test_a_missing_shard_is_not_read_as_data(store: Path) -> None:
    (store / SHARD).unlink()
    with pytest.raises(StoreError, match=r"attention_weight: chunk c/0/0/1/0 is damaged .*missing"):
        attnlens.open(store)[0].attention.rows([5, 70])
    (store / "0000/lens_token/c/0/0/0").unlink()
    with pytest.raises(StoreError, match="lens_token: chunk c/0/0/0 is damaged"):
        attnlens.open(store)[0]["lens_token"].isel(token=3)
    (store / "0000/attention_max/c/0/0/0").unlink()
    with pytest.raises(StoreError, match="attention_max: chunk c/0/0/0 is damaged"):
        attnlens.open(store)[0].attention.reduced("max", 70)


def test_an_extra_file_and_changed_metadata_are_found(store: Path) -> None:
    (store / "0000" / "extra.txt").write_text("?")
    (store / "stray").mkdir()
    change(store / "0000", lambda document: document["attributes"]["attnlens"].update(completion="Bob."))
    found = {(problem.where, problem.kind) for problem in verify(store).problems}
    assert {("0000/extra.txt", "manifest"), ("0000", "manifest"), ("stray", "format")} <= found


def edited(store: Path, name: str, edit: Callable[[Any], None]) -> list[str]:
    """Problems after changing an array's values, those of the manifest left out."""
    array = zarr.open_array(store / "0000" / name, mode="r+")
    values = array[...]
    edit(values)
    array[...] = values
    return [str(problem) for problem in verify(store).problems if problem.kind == "value"]


def set_cell(cell: Any, value: float) -> Callable[[Any], None]:
    def edit(values: Any) -> None:
        values[cell] = value

    return edit


@pytest.mark.parametrize(
    ("name", "cell", "value", "expected"),
    [
        ("attention_weight", (0, 1, 66, 3), 1.5, "layer 0, head 1, query 66, key 3: weight outside 0 … 1"),
        ("attention_weight", (0, 1, 3, 60), 0.5, "query 3, key 60: looks at a later token"),
        ("attention_weight", (1, 0, 66, 3), 0.1, "layer 1, head 0, query 66, key 3: looks beyond the window of 9"),
        ("attention_weight", (0, 1, 40, 40), 0.9, "query 40: row does not sum to 1"),
        ("attention_max", (2, 0, 5), 0.9, "layer 0, query 71, key 5: differs from the heads' weights"),
        ("attention_mean", (0, 1, 64), 0.9, "layer 1, query 69, key 64: differs from the heads' weights"),
        ("lens_probability", (1, 5, 2), 0.9, "depth 1, token 5: ranks are not in descending order"),
        ("lens_token", (1, 5, 2), 50, "depth 1, token 5: id outside the vocabulary"),
        ("lens_entropy", (0, 0), 9.0, "outside 0 … log(vocabulary)"),
        ("next_rank", (0, 0), -1, "next_rank/c/0/0: depth 0, token 0: outside the vocabulary"),
        ("next_probability", (2, 9), 0.99, "depth 2, token 9: the last depth differs from model_probability"),
        ("vocabulary_id", (3,), 4, "an id is listed twice"),
        ("vocabulary_id", (3,), 4, "id is not listed in vocabulary_id"),
        ("token_id", (3,), 50, "token 3 has id 50: outside -1 … 49"),
        ("token_byte_offset", (3,), 1, "token 2: offsets do not grow"),
        ("layer", (1,), 0, "numbers do not grow"),
        ("generated", (0,), 3, "begins with 3"),
    ],
)
def test_values_that_cannot_be(store: Path, name: str, cell: Any, value: float, expected: str) -> None:
    problems = edited(store, name, set_cell(cell, value))
    assert any(expected in problem for problem in problems), problems
    assert all(problem.startswith("0000") for problem in problems)


def test_many_cells_with_one_fault_are_one_problem(store: Path) -> None:
    problems = edited(store, "attention_weight", set_cell((0, 1, slice(66, 70), 3), 1.5))
    assert sum("weight outside 0 … 1 (and 3 more)" in problem for problem in problems) == 1


def test_sinks_may_sum_to_less(store: Path, tmp_path: Path) -> None:
    sample = Sample()
    sample.weights //= np.float16(2)
    values = sample.metadata().model_dump()
    for layer in values["model"]["layers"]:
        layer["sinks"] = True
    sample.metadata = lambda **_: type(attnlens.open(store)[0].metadata).model_validate(values)  # type: ignore[method-assign]
    sample.maximum, sample.mean = sample.weights.max(1), sample.weights.mean(1)
    sample.write(tmp_path / "sinks.zarr")
    assert verify(tmp_path / "sinks.zarr").problems == []


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(2, "format version 2, this attnlens reads version 1: upgrade attnlens"), (0, "version is 0"), ("1", "is '1'")],
)
def test_another_version_is_refused(store: Path, version: Any, remedy: str) -> None:
    change(store, lambda document: document["attributes"]["attnlens"].update(version=version))
    with pytest.raises(StoreError, match=remedy):
        attnlens.open(store)


def test_what_is_no_store_is_said(tmp_path: Path, store: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("?")
    zarr.create_group(tmp_path / "group")
    zarr.create_array(tmp_path / "array", shape=(1,), dtype="int32")
    (store / "zarr.json").write_text('{"zarr_format": 3')
    for name, message in {
        "none": "no such store",
        "empty": "it has no zarr.json",
        "file": "is a file",
        "group": "not an attnlens store",
        "array": "describes 'array'",
        "run.zarr": "zarr.json is damaged",
    }.items():
        with pytest.raises(StoreError, match=message) as caught:
            attnlens.open(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_hostile_store_is_refused(store: Path) -> None:
    def array(**changes: Any) -> Callable[[dict[str, Any]], None]:
        def edit(document: dict[str, Any]) -> None:
            document["consolidated_metadata"]["metadata"]["token_id"].update(changes)

        return edit

    original = (store / "0000" / "zarr.json").read_bytes()
    for edit, message in (
        (array(codecs=[{"name": "numcodecs.pickle"}]), "codec 'numcodecs.pickle' is unknown"),
        (array(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1 << 40]}}), "one chunk"),
        (array(shape=[1 << 60]), "axis longer than"),
        (array(shape=[-1]), "shape is"),
        (array(shape="x"), "shape is"),
        (lambda document: document["consolidated_metadata"]["metadata"].update({"../x": {}}), "no name of an array"),
        (lambda document: document.update(attributes=3), "no group with attributes"),
    ):
        (store / "0000" / "zarr.json").write_bytes(original)
        change(store / "0000", edit)
        with pytest.raises(StoreError, match=message):
            attnlens.open(store)[0]
        assert not verify(store).passed
    (store / "0000" / "zarr.json").write_bytes(original)
    with pytest.raises(StoreError, match="axis longer than 10"):
        open_store(store, limits=Limits(axis=10))[0]


def test_any_flipped_byte_is_noticed(store: Path) -> None:
    files = [path for path in sorted(store.rglob("*")) if path.is_file()]
    rng = np.random.default_rng(0)
    for path in rng.choice(np.array(files, object), 8, replace=False):
        before = path.read_bytes()
        data = bytearray(before)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with contextlib.suppress(AttnlensError):
            assert not verify(store).passed, path
        path.write_bytes(before)
    assert verify(store).passed


def test_describe(whole: Path) -> None:
    found = describe(whole)
    capture = found.captures[0]
    assert (found.format, found.version, found.files) == ("attnlens", 1, sum(p.is_file() for p in whole.rglob("*")))
    assert found.stored_bytes == sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    assert (capture.n_prompt, capture.n_generated, capture.n_fed) == (70, 5, 74)
    assert capture.layers == {"full": 1, "sliding": 1}
    weight = next(array for array in capture.arrays if array.name == "attention_weight")
    assert weight.axes == {"layer": 2, "head": 2, "query": 75, "key": 75}
    assert weight.raw_bytes == 2 * 2 * 2 * 75 * 75
    assert capture.absent == {"row 74": "not fed to the model"}
    assert json.loads(json.dumps(found.to_json()))["captures"][0]["model"]["id"] == "synthetic"
