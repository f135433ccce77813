"""Whatever copies or exports a store compares it with the manifest, and writes nothing of one that is not as it was."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnlens.progress import Silent
from attnlens.render.viewer.single import export_html
from attnlens.schemas.errors import StoreError
from attnlens.store import lists
from attnlens.store.places import Folder
from attnlens.store.tools import copy
from attnlens.store.tools.crop import crop
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.merge import merge
from attnlens.store.tools.npz import export_npz
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.verify import verify
from store_sample import Sample, plain_zip, tree_hash

TOOLS: dict[str, Callable[[Path, Path], object]] = {
    "pack": lambda store, out: pack(store, out / "new.zarr.zip"),
    "export --html": lambda store, out: export_html(store, out / "new.html"),
    "merge": lambda store, out: merge([store, store], out / "new.zarr"),
    "merge of one": lambda store, out: merge([store], out / "new.zarr"),
    "crop": lambda store, out: crop(store, out / "new.zarr"),
    "export to HDF5": lambda store, out: export_hdf5(store, out / "new.h5"),
    "export to npz": lambda store, out: export_npz(store, out / "new.npz"),
}


def swapped(store: Path) -> None:
    """Two files change places: each still has a good checksum of its own."""
    one, other = (store / f"0000/{name}/c/0/0/0" for name in ("attention_max", "attention_mean"))
    data = one.read_bytes()
    assert data != other.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def shards_swapped(store: Path) -> None:
    one, other = (store / f"0000/{name}/c/0/0" for name in ("lens_entropy", "next_probability"))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def lost(store: Path) -> None:
    (store / "0000/token_special/c/0").unlink()


def lost_with_nan(store: Path) -> None:
    (store / "0000/next_probability/c/0/0").unlink()


def added(store: Path) -> None:
    (store / "0000/attention_max/c/0/0/1").write_bytes(b"more")


def forged(store: Path) -> None:
    document = json.loads((store / "0000/zarr.json").read_text())
    document["attributes"]["attnlens"]["completion"] = "forged"
    (store / "0000/zarr.json").write_text(json.dumps(document))


def front_changed(store: Path) -> None:
    file = store / "0000/manifest_file/front.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "swapped": (swapped, r"0000/attention_(max|mean).*c/0/0/0"),
    "shards swapped": (shards_swapped, r"0000/(lens_entropy|next_probability).*c/0/0"),
    "lost": (lost, r"0000/token_special.*c/0.*is missing"),
    "lost with NaN": (lost_with_nan, r"0000/next_probability.*c/0/0.*is missing"),
    "forged": (forged, "0000/zarr.json was changed"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "run.zarr"
    Sample(n_prompt=9, n_generated=4).write(path)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run.zarr")


COPIES = ("pack", "export --html", "merge", "crop")


@pytest.mark.parametrize(
    ("damage", "tool"),
    [*(("swapped", tool) for tool in TOOLS), *itertools.product(list(DAMAGES)[1:], COPIES)],
)
def test_a_store_that_is_not_as_it_was_written_is_refused_and_nothing_is_left(
    damage: str, tool: str, store: Path, tmp_path: Path
) -> None:
    change, words = DAMAGES[damage]
    change(store)
    assert not verify(store).passed
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match=words) as caught:
        TOOLS[tool](store, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("tool", ["pack", "merge", "crop"])
def test_a_file_that_no_manifest_lists_is_not_copied(tool: str, store: Path, tmp_path: Path) -> None:
    added(store)
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="0000/attention_max/c/0/0/1 is not in the capture's manifest"):
        TOOLS[tool](store, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_front_and_the_metadata_of_the_store_are_compared_as_well(store: Path, tmp_path: Path) -> None:
    front_changed(store)
    with pytest.raises(StoreError, match=r"0000/manifest_file/front\.bin is not the file that was written"):
        pack(store)
    shutil.rmtree(store)
    Sample().write(store)
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["attnlens"]["writer"] = "somebody"
    (store / "zarr.json").write_text(json.dumps(document))
    for tool in ("pack", "export --html"):
        with pytest.raises(StoreError, match=r"zarr\.json was changed after it was written"):
            TOOLS[tool](store, tmp_path)


def test_a_packed_store_is_compared_when_it_is_unpacked_or_packed_again(store: Path, tmp_path: Path) -> None:
    """The checksums of the zip are good: it was made of files that had changed places."""
    swapped(store)
    path = plain_zip(store, tmp_path / "other.zarr.zip")
    for tool in (unpack, pack):
        with pytest.raises(StoreError, match=r"0000/attention_(max|mean)/c/0/0/0 is not the file that was written"):
            tool(path, tmp_path / ("new.zarr" if tool is unpack else "new.zarr.zip"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"run.zarr", "other.zarr.zip"}


@pytest.mark.parametrize("tool", ["pack", "merge", "crop", "export --html"])
def test_what_is_copied_is_read_once(tool: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file was hashed first, and then read again."""
    counted: dict[str, int] = {}
    read = Folder.read
    monkeypatch.setattr(copy, "PIECE", 1000)

    def counting(self: Folder, path: str, start: int = 0, stop: int | None = None) -> bytes:
        data = read(self, path, start, stop)
        counted[path] = counted.get(path, 0) + len(data)
        return data

    monkeypatch.setattr(Folder, "read", counting)
    path = "0000/attention_weight/c/0/0/0/0"
    TOOLS[tool](store, tmp_path)
    times = 2 if tool == "merge" else 1  # it is given the store twice
    assert counted[path] == times * (store / path).stat().st_size


class Meanwhile(Silent):
    """Does something when the first file was copied."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act: Callable[[], Any] | None = act

    def advance(self, amount: int = 1, note: str = "") -> None:
        act, self._act = self._act, None
        if act is not None:
            act()


def broken_off(path: Path) -> Path:
    """A store whose capture is not finished."""
    from render_store import make

    make(path, broken_off=9)
    return path


def test_an_unfinished_capture_is_packed_as_it_is(tmp_path: Path) -> None:
    store = broken_off(tmp_path / "run.zarr")
    back = unpack(pack(store).path, tmp_path / "back.zarr").path
    assert tree_hash(back) == tree_hash(store)
    export_html(store, tmp_path / "run.html")


def test_rows_that_are_committed_while_a_store_is_packed_are_noticed(tmp_path: Path) -> None:
    """Chunks that were copied before would lack them."""
    store = broken_off(tmp_path / "run.zarr")
    document = store / "0000" / "zarr.json"

    def commit() -> None:
        text = json.loads(document.read_text())
        text["attributes"]["attnlens"]["committed"] -= 1
        document.write_text(json.dumps(text))

    with pytest.raises(StoreError, match=r"0000/zarr\.json was written to while it was copied"):
        pack(store, progress=Meanwhile(commit))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.zarr"]


def test_another_capture_that_comes_in_between_is_not_mixed_in(store: Path, tmp_path: Path) -> None:
    Sample(n_prompt=9, n_generated=4, seed=7).write(tmp_path / "other.zarr")

    def exchange() -> None:
        shutil.rmtree(store / "0000")
        shutil.copytree(tmp_path / "other.zarr" / "0000", store / "0000")

    with pytest.raises(StoreError, match="is not the file that was written"):
        pack(store, tmp_path / "new.zarr.zip", progress=Meanwhile(exchange))
    assert not (tmp_path / "new.zarr.zip").exists()


def test_a_crop_of_an_unfinished_capture_has_a_manifest_and_is_compared(tmp_path: Path) -> None:
    part = crop(broken_off(tmp_path / "run.zarr"), tmp_path / "part.zarr").path
    assert verify(part).problems == verify(tmp_path / "run.zarr").problems
    both = merge([part, part], tmp_path / "both.zarr").path
    file = both / "0001" / "token_special" / "c" / "0"
    file.write_bytes((both / "0001" / "token_id" / "c" / "0").read_bytes())
    assert "0001/token_special/c/0" in [problem.where for problem in verify(both).problems]
    with pytest.raises(StoreError, match="0001/token_special/c/0 is not the file that was written"):
        pack(both)


def test_lists_of_a_store_that_are_in_arrays_are_compared_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "INLINE_BYTES", 0)
    store = tmp_path / "run.zarr"
    Sample().write(store)
    pack(store, tmp_path / "whole.zarr.zip")
    one, other = (next(store.glob(f"index-*/{name}/c/0")) for name in ("prompt", "completion"))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with pytest.raises(StoreError, match=r"index-\w+/(prompt|completion)/c/0"):
        pack(store)
    one.unlink()
    with pytest.raises(StoreError, match=r"index-\w+/prompt/c/0 is missing"):
        pack(store)
    assert {entry.name for entry in tmp_path.iterdir()} == {"run.zarr", "whole.zarr.zip"}
