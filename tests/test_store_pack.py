"""Packed stores: read in place by everything, and back to the same files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.render.pictures import render
from attnlens.schemas.errors import AttnlensError, InputError, StoreError
from attnlens.store import exchange
from attnlens.store.info import describe
from attnlens.store.places import Folder, LocalArchive, stem_of
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.verify import verify
from store_sample import Sample, plain_zip, tree_hash


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    Sample(n_prompt=9, n_generated=4).write(path)
    return path


@pytest.fixture(scope="module")
def packed(store: Path) -> Path:
    return pack(store).path


def test_packing_and_unpacking_gives_the_same_files(store: Path, packed: Path, tmp_path: Path) -> None:
    assert packed.name == "run.zarr.zip"
    unpacked = unpack(packed, tmp_path / "back.zarr").path
    assert tree_hash(unpacked) == tree_hash(store)
    again = pack(unpacked, tmp_path / "again.zarr.zip")
    assert again.path.read_bytes() == packed.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_zip_is_a_plain_one_of_uncompressed_entries(store: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
        for file in store.rglob("*"):
            if file.is_file():
                assert archive.read(file.relative_to(store).as_posix()) == file.read_bytes()


def test_every_reader_gives_the_same_from_a_zip(store: Path, packed: Path, tmp_path: Path) -> None:
    assert verify(packed).problems == []
    folder, file = describe(store).to_json(), describe(packed).to_json()
    assert {**file, "path": ""} == {**folder, "path": ""}
    rows, there = (attnlens.open(path)[0].attention.rows(range(12)) for path in (packed, store))
    np.testing.assert_array_equal(rows, there)
    render(packed, tmp_path / "a", n_workers=2)
    render(store, tmp_path / "b")
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")


def test_several_processes_draw_from_one_zip(packed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "attnlens", "render", str(packed), "-q", "-o"]
    running = [subprocess.Popen([*command, str(tmp_path / name)]) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")


def test_opening_a_zip_imports_no_zarr(packed: Path) -> None:
    code = f"import attnlens, sys; attnlens.open({str(packed)!r})[0].token_text\nassert 'zarr' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = f"import attnlens, sys; print(attnlens.open({str(packed)!r})[0]); assert 'zarr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("top", ["", "run.zarr/"])
def test_a_zip_that_other_programs_made_is_read(store: Path, tmp_path: Path, top: str) -> None:
    path = plain_zip(store, tmp_path / "other.zarr.zip", top=top)
    assert verify(path).problems == []
    assert attnlens.open(path)[0].token_text == attnlens.open(store)[0].token_text


def test_a_compressed_zip_is_refused_in_words(store: Path, tmp_path: Path) -> None:
    path = plain_zip(store, tmp_path / "small.zarr.zip", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(StoreError, match="is compressed: a store is read in place; unzip it"):
        attnlens.open(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../up", "lead out of the store"),
        ("/etc/passwd", "lead out of the store"),
        ("0000/../../up", "lead out of the store"),
        ("C:/up", "lead out of the store"),
        ("0000\\up", "lead out of the store"),
        ("zarr.json", "is there twice"),
    ],
)
def test_zip_slip_is_refused(store: Path, tmp_path: Path, name: str, words: str) -> None:
    path = plain_zip(store, tmp_path / "evil.zarr.zip")
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate") if name == "zarr.json" else contextlib.nullcontext(),
    ):
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(StoreError, match=words):
        attnlens.open(path)
    with pytest.raises(StoreError, match=words):
        unpack(path, tmp_path / "deep" / "out.zarr")
    assert not (tmp_path / "up").exists()
    assert not (tmp_path / "deep" / "out.zarr").exists()


def test_a_link_in_a_zip_is_refused(store: Path, tmp_path: Path) -> None:
    path = plain_zip(store, tmp_path / "evil.zarr.zip")
    link = zipfile.ZipInfo("0000/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(StoreError, match="'0000/link' is a link"):
        attnlens.open(path)


def test_a_link_out_of_a_folder_is_refused(store: Path, tmp_path: Path) -> None:
    path = unpack(pack(store, tmp_path / "a.zarr.zip").path, tmp_path / "a.zarr").path
    chunk = path / "0000/token_id/c/0"
    outside = chunk.replace(tmp_path / "outside")
    chunk.symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the store"):
        attnlens.open(path)[0].token_id  # noqa: B018
    assert not verify(path).passed
    chunk.unlink()
    inside = outside.replace(path / "inside")
    chunk.symlink_to(inside)
    assert attnlens.open(path)[0].token_id.tolist() == attnlens.open(store)[0].token_id.tolist()
    (path / "0000" / "key").rename(tmp_path / "key")
    (path / "0000" / "key").symlink_to(tmp_path / "key")
    with pytest.raises(StoreError, match="leads out of the store"):
        attnlens.open(path)[0]["key"][:]


def test_a_pipe_in_a_folder_does_not_hang(store: Path, tmp_path: Path) -> None:
    path = unpack(pack(store, tmp_path / "a.zarr.zip").path, tmp_path / "a.zarr").path
    (path / "0000/token_id/c/0").unlink()
    os.mkfifo(path / "0000/token_id/c/0")
    with pytest.raises(StoreError, match="is no plain file"):
        attnlens.open(path)[0].token_id  # noqa: B018


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_flipped_byte_of_a_zip_is_found(
    packed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    before = packed.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1) | st.integers(len(before) - 5000, len(before) - 1))
    path = tmp_path_factory.mktemp("flip") / "run.zarr.zip"
    path.write_bytes(before[:at] + bytes([before[at] ^ (1 << data.draw(st.integers(0, 7)))]) + before[at + 1 :])
    try:
        assert not verify(path).passed, at
    except AttnlensError as error:
        assert str(path) in str(error)  # noqa: PT017
    path.unlink()


@pytest.mark.parametrize("cut", [1, 22, 200, 5000, 40000])
def test_a_zip_that_was_cut_short_is_refused(packed: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.zarr.zip"
    path.write_bytes(packed.read_bytes()[:-cut])
    with pytest.raises(StoreError, match=r"run\.zarr\.zip: .*(cut short|damaged)"):
        attnlens.open(path)


def test_nothing_is_replaced_unasked(store: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        pack(store)
    before = packed.read_bytes()
    assert pack(store, overwrite=True).path.read_bytes() == before
    (tmp_path / "notes.zip").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    with pytest.raises(InputError, match="not an attnlens store"):
        pack(store, tmp_path / "notes.zip", overwrite=True)
    with pytest.raises(InputError, match="not an attnlens store"):
        unpack(packed, tmp_path / "folder", overwrite=True)
    with pytest.raises(InputError, match="is not packed"):
        unpack(store, tmp_path / "x.zarr")
    assert (tmp_path / "notes.zip").read_text() == "mine"


def test_a_damaged_file_is_not_unpacked(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    data[100] ^= 1
    path = tmp_path / "bad.zarr.zip"
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged, its bytes are not those that were packed"):
        unpack(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.zarr.zip"}


def test_places_agree(store: Path, packed: Path) -> None:
    folder, archive = Folder(store), LocalArchive(packed)
    assert folder.files() == archive.files()
    assert folder.folders("0000") == archive.folders("0000")
    for path, size in folder.files("0000").items():
        for start, stop in ((0, None), (3, 9), (-7, None), (size, size + 5), (0, size + 9)):
            assert folder.read(path, start, stop) == archive.read(path, start, stop) == slow(store / path, start, stop)
    for place in (folder, archive):
        with pytest.raises(FileNotFoundError):
            place.read("0000/none")
        assert not place.exists("0000")


def slow(path: Path, start: int, stop: int | None) -> bytes:
    return path.read_bytes()[start:stop]


@pytest.mark.parametrize(
    ("where", "stem"),
    [("a/run.zarr", "run"), ("run.zarr.zip", "run"), ("https://x/y/run.zarr/", "run"), ("plain", "plain")],
)
def test_stem(where: str, stem: str) -> None:
    assert stem_of(where) == stem


def test_commands(store: Path, tmp_path: Path, lens: Callable[..., str]) -> None:
    assert ": 53 files, " in lens("pack", store, "-o", tmp_path / "x.zarr.zip", "-q")
    assert json.loads(lens("unpack", tmp_path / "x.zarr.zip", "--json", "-q"))["path"] == str(tmp_path / "x.zarr")
    lens("render", tmp_path / "x.zarr.zip", "-q", "-o", tmp_path / "pictures")
    assert (tmp_path / "pictures" / "attn_0.png").exists()


@pytest.fixture
def lens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    from attnlens import cli

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["lens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("at_once", [True, False])
def test_a_store_takes_the_place_of_another(
    at_once: bool, store: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step or, where the file system has none, in two; nothing stays beside it."""
    if not at_once:
        monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    Sample(seed=9).write(tmp_path / "run.zarr")
    unpack(packed, tmp_path / "run.zarr", overwrite=True)
    assert tree_hash(tmp_path / "run.zarr") == tree_hash(store)
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]
