"""The index and the prompts of a store with very many captures lie in arrays, and whatever makes or reads a store knows
of them. Plain zarr says what is in them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.metadata import Batch, BatchPrompt, IndexEntry
from attnlens.store import lists
from attnlens.store.batch import open_batch
from attnlens.store.listing import listing
from attnlens.store.lists import batches_of
from attnlens.store.reader import open_store
from attnlens.store.root import new_root, replaceable, write_root
from attnlens.store.tools.crop import crop
from attnlens.store.tools.extend import extending
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.hdf5_import import import_hdf5
from attnlens.store.tools.merge import merge
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample

MANY = 100_000
QUESTION = "Why is the sky blue, and why is it red in the evening? " * 8


@pytest.fixture
def long_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every list counts as long."""
    monkeypatch.setattr(lists, "INLINE_BYTES", 0)


def about(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "zarr.json").read_bytes())["attributes"]["attnlens"]
    return found


def group(store: Path, kind: str) -> Any:
    """The arrays of a list, as plain zarr sees them."""
    return zarr.open_group(store / about(store)["lists"][kind]["folder"], mode="r")


def two_captures(path: Path) -> Path:
    Sample().write(path)
    Sample(seed=1, n_prompt=7).write(StoreWriter.create(path, append=True))
    return path


def folders(store: Path) -> list[str]:
    return sorted(entry.name for entry in store.iterdir() if entry.is_dir())


def test_the_documents_of_100_000_captures_are_small_and_are_opened_and_listed(tmp_path: Path) -> None:
    names = [f"{number:04d}" for number in range(MANY)]
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    entries = [
        IndexEntry(
            id=name, prompt_id=f"sky-{name}", status="complete", n_prompt=90, n_token=120, digest=digest,
            prompt=f"{name} {QUESTION}"[:256], completion=f"Rayleigh, {name}. {QUESTION}"[:256], model="Qwen/Qwen3-1B",
        )
        for name, digest in zip(names, digests, strict=True)
    ]  # fmt: skip
    prompts = [
        BatchPrompt(capture=name, prompt_id=f"sky-{name}", sha256=digest)
        for name, digest in zip(names, digests, strict=True)
    ]
    batch = Batch(settings={"model": "Qwen/Qwen3-0.6B"}, prompts=prompts, run="run-1")
    metadata = new_root().model_copy(update={"planned": names, "index": entries, "batches": [batch]})
    write_root(tmp_path, metadata, running=False)
    assert (tmp_path / "zarr.json").stat().st_size < 4 << 20

    began = time.process_time()
    store = open_store(tmp_path)
    opened = time.process_time() - began
    assert store.ids == names
    lines = listing(tmp_path)
    listed = time.process_time() - began
    assert store.find("sky-54321") == "54321"
    assert store.find("id:sky-99999") == "99999"
    assert opened < 1, opened
    assert listed < 8, listed
    assert [line.id for line in lines] == names
    assert lines[-1].prompt == entries[-1].prompt
    assert lines[7].completion == entries[7].completion
    assert batches_of(store.place, store.metadata) == [batch]

    index = group(tmp_path, "index")
    assert np.asarray(index["id"][:]).tolist() == names
    assert np.asarray(index["digest"][:]).tolist() == digests
    assert np.asarray(index["prompt"][MANY - 3 :]).tolist() == [entry.prompt for entry in entries[-3:]]
    assert (np.asarray(index["n_token"][:]) == 120).all()
    assert np.asarray(group(tmp_path, "batches")["sha256"][:]).tolist() == digests
    for name, array in [*index.arrays(), *group(tmp_path, "batches").arrays()]:
        assert array.chunks[0] <= 16384, name
        assert array.shards is None, name


def test_a_batch_of_thousands_is_planned_and_resumed(tmp_path: Path) -> None:
    wanted = [(f"prompt {number}", hashlib.sha256(b"%d" % number).hexdigest()) for number in range(3000)]
    store, settings = tmp_path / "run.zarr", {"model": "tiny"}
    open_batch(store, wanted, settings, mode="new", run="a", shared=False).close()
    assert "batches" not in about(store) or about(store)["batches"] == []
    assert np.asarray(group(store, "batches")["prompt_id"][:]).tolist() == [name for name, _ in wanted]
    again = open_batch(store, wanted, settings, mode="resume", run="b", shared=False)
    assert [(prompt.prompt_id, prompt.sha256) for prompt in again.pending()] == wanted
    again.close()
    assert np.asarray(group(store, "batches")["run"][:]).tolist() == ["b"]
    assert [name for name in folders(store) if name.startswith("batches-")] == [
        about(store)["lists"]["batches"]["folder"]
    ]
    with pytest.raises(InputError, match="the prompts are in another order"):
        open_batch(store, wanted[::-1], settings, mode="resume", run="c", shared=False)
    open_batch(store, wanted[:2], settings, mode="append", run="d", shared=False).close()
    assert np.asarray(group(store, "batches")["count"][:]).tolist() == [3000, 2]
    assert about(store)["planned"][-1] == "3001"


@pytest.mark.usefixtures("long_lists")
def test_every_tool_takes_such_a_store_and_makes_one(tmp_path: Path) -> None:
    store = two_captures(tmp_path / "run.zarr")
    assert "index" in about(store)["lists"]
    assert folders(store) == ["0000", "0001", about(store)["lists"]["index"]["folder"]]
    assert verify(store).problems == []
    packed = pack(store).path
    unpacked = unpack(packed, tmp_path / "unpacked.zarr").path
    made = [
        packed,
        unpacked,
        crop(store, tmp_path / "crop.zarr", captures=["0001"]).path,
        merge([store, unpacked], tmp_path / "merged.zarr").path,
    ]
    export_hdf5(store, tmp_path / "run.h5")
    made.append(import_hdf5(tmp_path / "run.h5", tmp_path / "imported.zarr").path)
    for path in made:
        assert verify(path).problems == [], path
        assert [line.completion for line in listing(path)] == ["Alice."] * len(attnlens.open(path))
    assert {path.read_bytes() for path in unpacked.glob("index-*/*/c/0")} == {
        path.read_bytes() for path in store.glob("index-*/*/c/0")
    }
    replaceable(store)
    assert crop(store, unpacked, overwrite=True).captures == ["0000", "0001"]
    assert verify(unpacked).problems == []


@pytest.mark.parametrize("long", [False, True])
def test_what_is_appended_costs_no_look_at_the_captures_before(
    long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "INLINE_BYTES", 0 if long else 1 << 18)
    store = two_captures(tmp_path / "run.zarr")
    (store / "0000/zarr.json").write_text("nobody looks here")
    Sample(seed=2).write(StoreWriter.create(store, append=True))
    assert [line.completion for line in listing(store)] == ["Alice."] * 3
    with extending(store):  # finds nothing to do
        pass
    assert attnlens.open(store).ids == ["0000", "0001", "0002"]


def test_an_index_of_an_earlier_writer_is_read_and_made_anew(tmp_path: Path) -> None:
    store = two_captures(tmp_path / "run.zarr")
    document = json.loads((store / "zarr.json").read_bytes())
    for entry in document["attributes"]["attnlens"]["index"]:
        for name in ("model", "label", "changes"):
            del entry[name]
    del document["attributes"]["attnlens"]["digest"]
    (store / "zarr.json").write_text(json.dumps(document))
    assert [line.model for line in listing(store)] == ["synthetic"] * 2
    assert verify(store).problems == []
    Sample(seed=2).write(StoreWriter.create(store, append=True))
    assert [entry["model"] for entry in about(store)["index"]] == ["synthetic"] * 3


def test_a_store_of_100_000_captures_by_an_earlier_writer_opens(tmp_path: Path) -> None:
    names = [f"{number:04d}" for number in range(MANY)]
    entry = {
        "prompt_id": "x",
        "status": "complete",
        "n_prompt": 9,
        "n_token": 12,
        "prompt": QUESTION,
        "digest": "0" * 64,
    }
    prompts = [{"capture": name, "prompt_id": f"sky-{name}", "sha256": "0" * 64} for name in names]
    ours = {"format": "attnlens", "version": 1, "created": "2025", "writer": "attnlens 0", "planned": names,
            "batches": [{"settings": {}, "prompts": prompts, "run": None}],
            "index": [{"id": name, **entry} for name in names]}  # fmt: skip
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"attnlens": ours}}
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    assert (tmp_path / "zarr.json").stat().st_size > 1 << 25
    store = open_store(tmp_path)
    assert store.ids == names
    assert batches_of(store.place, store.metadata)[0].prompts[-1].prompt_id == "sky-99999"


@pytest.mark.usefixtures("long_lists")
def test_what_a_killed_writer_left_is_no_list_and_goes_with_the_next_write(tmp_path: Path) -> None:
    store = two_captures(tmp_path / "run.zarr")
    named = store / about(store)["lists"]["index"]["folder"]
    left = store / "index-0123456789abcdef"
    shutil.copytree(named, left)
    shutil.copytree(named, store / "batches.0123456789abcdef.partial")
    assert attnlens.open(store).ids == ["0000", "0001"]
    assert [problem.where for problem in verify(store).problems] == [left.name]
    Sample(seed=2).write(StoreWriter.create(store, append=True))
    assert folders(store) == ["0000", "0001", "0002", about(store)["lists"]["index"]["folder"]]
    assert verify(store).problems == []


@pytest.mark.usefixtures("long_lists")
def test_a_reader_that_was_there_before_takes_the_new_list(tmp_path: Path) -> None:
    store = two_captures(tmp_path / "run.zarr")
    early = open_store(store)
    Sample(seed=2).write(StoreWriter.create(store, append=True))
    assert early.ids == ["0000", "0001", "0002"]


@pytest.mark.usefixtures("long_lists")
def test_a_damaged_index_is_made_anew_by_the_next_writer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = two_captures(tmp_path / "run.zarr")
    next(store.glob("index-*/prompt/c/0")).unlink()
    with pytest.raises(StoreError, match=r"prompt/c/0: is missing"):
        listing(store)
    Sample(seed=2).write(StoreWriter.create(store, append=True))
    assert "the index is made anew" in caplog.text
    assert [line.prompt for line in listing(store)] == [Sample().metadata().prompt] * 3
    assert verify(store).problems == []


Change = Callable[[dict[str, Any], Path], None]


def _rename(ours: dict[str, Any], folder: str) -> None:
    ours["lists"]["index"]["folder"] = folder


def _file(ours: dict[str, Any], name: str, digest: str) -> None:
    ours["lists"]["index"]["files"][name] = digest


def _array(ours: dict[str, Any], folder: Path, array: str, **changes: Any) -> None:
    """Change what an array says of itself, with the hashes that this gives: as an attacker would."""
    document = json.loads((folder / "zarr.json").read_bytes())
    document["consolidated_metadata"]["metadata"][array] |= changes
    (folder / "zarr.json").write_text(json.dumps(document))
    ours["lists"]["index"]["files"]["zarr.json"] = hashlib.sha256((folder / "zarr.json").read_bytes()).hexdigest()


def _grow(folder: Path, file: str, size: int) -> None:
    with (folder / file).open("r+b") as opened:
        opened.truncate(size)


GRID = {"name": "regular", "configuration": {"chunk_shape": [1 << 20]}}
HOSTILE: list[tuple[Change, str]] = [
    (lambda ours, _: _rename(ours, "../index-0123456789abcdef"), "no folder of it"),
    (lambda ours, _: _rename(ours, "batches-0123456789abcdef"), "no folder of it"),
    (lambda ours, _: _rename(ours, "0000"), "no folder of it"),
    (lambda ours, _: _rename(ours, "index-0123456789abcdef"), "is missing"),
    (lambda ours, _: _file(ours, "../0000/zarr.json", "0" * 64), "no file of an array"),
    (lambda ours, _: _file(ours, "id/c/0", "0"), "no file of an array"),
    (lambda ours, _: _file(ours, "id/c/0", "0" * 64), "not those that were written"),
    (lambda ours, _: ours["lists"]["index"]["files"].pop("id/c/0"), "is not among the files"),
    (lambda ours, _: ours["lists"]["index"]["files"].pop("zarr.json"), "is not among the files"),
    (lambda ours, _: ours["planned"].pop(), "has 2 entries, but the store has planned 1"),
    (lambda ours, _: ours["lists"].update(index=[]), "lists.index"),
    (lambda ours, folder: _grow(folder, "zarr.json", 2), "not those that were written"),
    (lambda ours, folder: shutil.rmtree(folder / "id"), "is missing"),
    (lambda ours, folder: _grow(folder, "id/c/0", 1 << 40), "larger than 67108864 bytes"),
    (lambda ours, folder: _grow(folder, "zarr.json", 1 << 40), "larger than 67108864 bytes"),
    (lambda ours, folder: _array(ours, folder, "id", shape=[1 << 30]), "axis longer than"),
    (lambda ours, folder: _array(ours, folder, "id", shape=[1]), "other arrays along capture have"),
    (lambda ours, folder: _array(ours, folder, "id", shape=[2, 1]), "different numbers of dimensions"),
    (lambda ours, folder: _array(ours, folder, "id", shape="x"), "shape is 'x'"),
    (lambda ours, folder: _array(ours, folder, "id", chunk_grid=GRID), "expected at most 16384"),
    (lambda ours, folder: _array(ours, folder, "id", data_type="int32"), "expected string over"),
    (lambda ours, folder: _array(ours, folder, "id", dimension_names=["token"]), "expected string over"),
    (lambda ours, folder: _array(ours, folder, "id", codecs=[{"name": "pickle"}]), "codec 'pickle' is unknown"),
    (lambda ours, folder: _array(ours, folder, "n_token", fill_value="x"), ""),
]  # fmt: skip


@pytest.mark.usefixtures("long_lists")
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_list_that_a_stranger_made_up_is_refused_in_a_line(number: int, tmp_path: Path) -> None:
    change, message = HOSTILE[number]
    store = two_captures(tmp_path / "run.zarr")
    document = json.loads((store / "zarr.json").read_bytes())
    ours = document["attributes"]["attnlens"]
    change(ours, store / ours["lists"]["index"]["folder"])
    (store / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError) as refused:
        listing(store)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
