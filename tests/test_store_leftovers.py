"""What a killed process has left is named and removed by the next one; what lives, or is not ours, is not touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.capture.models.cache import cached
from attnlens.render.run import files
from attnlens.schemas.errors import InputError, StoreError
from attnlens.store import exchange, leftovers, workplace
from attnlens.store.leftovers import sweep
from attnlens.store.tools.crop import crop
from attnlens.store.tools.npz import export_npz
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample, tree_hash

HALF = ".attnlens-0123456789abcdef.partial"
CHILD = """
import os, signal, sys
from pathlib import Path
from attnlens.store.workplace import _new_file, workplace
folder, wait = Path(sys.argv[1]), sys.argv[2] == "live"
with workplace(folder / "run.zarr") as made:
    made.mkdir()
    (made / "half").write_text("half")
    _new_file(folder)
    print("made", flush=True)
    if wait:
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def begun(folder: Path, how: str) -> subprocess.Popen[str]:
    """A process that has a workplace and a half-written file in a folder: it lives on, or is killed."""
    command = [sys.executable, "-c", CHILD, str(folder), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    if how == "dead":
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    return process


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_lives_is_left_alone_and_what_is_dead_is_named_and_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    living = begun(tmp_path, "live")
    kept = names(tmp_path)
    assert len(kept) == 2
    sweep(tmp_path)
    assert names(tmp_path) == kept
    assert not caplog.records
    living.communicate()
    sweep(tmp_path)
    assert names(tmp_path) == []
    assert len(caplog.records) == 2
    assert all(name in caplog.text for name in kept)
    assert f"what a run that was killed had left of {tmp_path / 'run.zarr'}" in caplog.text


def tool(name: str) -> Callable[[Path, Path], object]:
    source = "source.zarr"
    return {
        "crop": lambda folder, out: crop(folder / source, out / "crop.zarr"),
        "export": lambda folder, out: export_npz(folder / source, out / "run.npz"),
        "capture": lambda _, out: Sample().write(out / "new.zarr"),
        "pictures": lambda _, out: files.prepare(out),
    }[name]


@pytest.mark.parametrize("name", ["crop", "export", "capture", "pictures"])
def test_every_command_that_writes_looks_for_leftovers(name: str, tmp_path: Path) -> None:
    Sample().write(tmp_path / "source.zarr")
    (tmp_path / "out").mkdir()
    folder = tmp_path / "out" / HALF
    folder.mkdir()
    (folder / workplace.HELD).write_text(json.dumps({"folder": HALF, "of": "run.h5"}))
    (folder / workplace.MADE).write_bytes(b"half")
    tool(name)(tmp_path, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_cache_that_was_being_filled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNLENS_CACHE", str(tmp_path))
    begun(tmp_path, "dead")

    def make(folder: Path) -> None:
        (folder / "weights").write_bytes(b"w")

    cached("model", make)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    "what", ["more", "other folder", "no record", "link", "linked lock", "linked file", "pipe", "name"]
)
def test_what_is_not_ours_is_not_touched(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (aside := tmp_path / "aside").mkdir()
    (aside / "precious").write_text("precious")
    (out := tmp_path / "out").mkdir()
    folder = out / (HALF if what != "name" else ".attnlens-0123.partial")
    folder.mkdir()
    record = json.dumps({"folder": HALF if what != "other folder" else "copied", "of": "run.zarr"})
    (folder / workplace.MADE).mkdir()
    (folder / workplace.HELD).write_text(record if what != "no record" else "{}")
    if what == "more":
        (folder / "thesis.tex").write_text("mine")
    elif what == "link":
        folder.rename(aside / HALF)
        folder.symlink_to(aside / HALF)
    elif what == "linked lock":
        (folder / workplace.HELD).rename(aside / "lock")
        (folder / workplace.HELD).symlink_to(aside / "lock")
    elif what == "linked file":
        (out / ".attnlens-fedcba9876543210.partial").symlink_to(aside / "precious")
        os.link(aside / "precious", out / ".attnlens-0000000000000000.partial")
        (folder / "keep").write_text("mine")
    elif what == "pipe":
        (folder / workplace.HELD).unlink()
        os.mkfifo(folder / workplace.HELD)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    sweep(out)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert (aside / "precious").read_text() == "precious"
    assert not caplog.records


def test_links_in_a_leftover_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    folder = tmp_path / HALF
    folder.mkdir()
    (folder / workplace.HELD).write_text(json.dumps({"folder": HALF, "of": "run.zarr"}))
    (folder / workplace.MADE).symlink_to(tmp_path / "precious")
    sweep(tmp_path)
    assert names(tmp_path) == ["precious"]
    assert (tmp_path / "precious" / "file").read_text() == "precious"


def test_without_locks_tools_work_and_nothing_is_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sample().write(tmp_path / "source.zarr")
    begun(tmp_path, "dead")
    left = names(tmp_path)

    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for module in (workplace, leftovers):
        monkeypatch.setattr(module, "flock", refuse)
    crop(tmp_path / "source.zarr", tmp_path / "crop.zarr")
    files.write(tmp_path / "picture.png", b"picture")
    assert names(tmp_path) == sorted([*left, "crop.zarr", "picture.png"])
    assert not verify(tmp_path / "crop.zarr").problems


STEPS = """
import os, signal, sys
from pathlib import Path
from attnlens.store import exchange
from attnlens.store.tools.crop import crop
source, place, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
exchange._exchange = lambda *_: False
seen = []
def watch(event, args):
    if event == "os.rename" and (str(place) in map(str, args[:2]) or "/before/" in str(args[0])):
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(event)
sys.addaudithook(watch)
crop(source, place, overwrite=True)
"""


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_store_is_put_back_where_two_names_cannot_be_exchanged(
    step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Sample(seed=1).write(tmp_path / "source.zarr")
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / "old.zarr"
    Sample(seed=2).write(place)
    before = tree_hash(place)
    command = [sys.executable, "-c", STEPS, str(tmp_path / "source.zarr"), str(place), str(step)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert place.exists() == (step != 1)
    with pytest.raises(InputError, match=r"old.zarr exists"):  # of the next tool, whatever it is
        crop(tmp_path / "source.zarr", place)
    assert ("back in its place" in caplog.text) == (step == 1)
    assert names(tmp_path / "out") == ["old.zarr"]
    assert (tree_hash(place) == before) == (step < 2)
    assert not verify(place).problems


def test_what_was_taken_from_its_place_stays_if_another_store_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / HALF
    Sample(seed=1).write(folder / exchange.BEFORE / "old.zarr")
    Sample(seed=2).write(folder / workplace.MADE)
    Sample(seed=3).write(tmp_path / "old.zarr")
    (folder / workplace.HELD).write_text(json.dumps({"folder": HALF, "of": "old.zarr"}))
    before = tree_hash(tmp_path)
    sweep(tmp_path)
    assert tree_hash(tmp_path) == before
    assert f"{folder / exchange.BEFORE} holds what was at {tmp_path / 'old.zarr'}" in caplog.text


def test_what_was_replaced_goes_only_after_the_new_name_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = tmp_path / HALF, tmp_path / "old.zarr"
    Sample(seed=2).write(place)
    Sample(seed=1).write(folder / workplace.MADE)
    (folder / workplace.HELD).write_text(json.dumps({"folder": HALF, "of": "old.zarr"}))
    fsync, flushed = os.fsync, []

    def noted(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink(), (folder / workplace.MADE).exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    sweep(tmp_path)
    assert (tmp_path, True) in flushed
    assert names(tmp_path) == ["old.zarr"]


def test_sweeping_while_others_write_takes_nothing_of_theirs(tmp_path: Path) -> None:
    stop = threading.Event()

    def sweeping() -> None:
        while not stop.is_set():
            sweep(tmp_path)

    threads = [threading.Thread(target=sweeping) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(100):
            with workplace.workplace(tmp_path / "run.zarr") as made:
                made.write_text("whole")
                made.rename(tmp_path / f"{number}")
            files.write(tmp_path / f"{number}.png", b"whole")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    sweep(tmp_path)
    assert len(names(tmp_path)) == 200
    assert all(path.read_text() == "whole" for path in tmp_path.iterdir())


def helper(made: str, told: str) -> None:
    with workplace.helping(Path(made)):
        Path(told).write_text(str(os.getpid()))
        time.sleep(60)


PARENT = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from attnlens.store.workplace import workplace
from test_store_leftovers import helper
if __name__ == "__main__":
    with workplace(Path(sys.argv[1]) / "run.zarr") as made:
        multiprocessing.get_context("spawn").Process(target=helper, args=(str(made), sys.argv[2])).start()
        while not Path(sys.argv[2]).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_helps_ends_with_its_parent(tmp_path: Path) -> None:
    """The one that reads an HDF5 file: nobody else would end it."""
    told, out = tmp_path / "told", tmp_path / "out"
    out.mkdir()
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", PARENT, str(out), str(told)]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode == -signal.SIGKILL
    child, deadline = int(told.read_text()), time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep(out)
    assert names(out) == []


def test_a_store_that_is_being_written_is_not_replaced(tmp_path: Path) -> None:
    Sample().write(tmp_path / "source.zarr")
    sample = Sample(seed=1)
    with StoreWriter.create(tmp_path / "run.zarr").capture(sample.metadata(), capacity=sample.n_token) as out:
        sample.prompt(out)
        with pytest.raises(InputError, match=f"is being written by process {os.getpid()}"):
            crop(tmp_path / "source.zarr", tmp_path / "run.zarr", overwrite=True)
        out.fail("enough")


def test_an_error_is_told_although_cleaning_up_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Sample().write(tmp_path / "source.zarr")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    monkeypatch.setattr("attnlens.store.tools.output.take_place", refuse)
    monkeypatch.setattr("attnlens.store.tools.output.flush", refuse)
    with pytest.raises(StoreError, match=r"cannot write .*Read-only file system"):
        crop(tmp_path / "source.zarr", tmp_path / "crop.zarr")
    monkeypatch.undo()
    sweep(tmp_path)
    assert names(tmp_path) == ["source.zarr"]


def test_an_append_removes_half_written_files_in_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, sample = tmp_path / "run.zarr", Sample()
    sample.write(path)
    with StoreWriter.create(path, append=True).capture(
        sample.metadata().model_copy(update={"id": "0001"}), capacity=20
    ) as out:
        sample.prompt(out)
        out.fail("killed")
    half = [path / "zarr.0123456789abcdef.partial", path / "0001" / "token_id" / "0.0123456789abcdef.partial"]
    half.append(path / "0000.0123456789abcdef.partial")  # of a relens
    for entry in half[:2]:
        entry.write_bytes(b"half")
    half[2].mkdir()
    sample.name = "0002"
    sample.write(StoreWriter.create(path, append=True))
    assert not list(path.rglob("*.partial"))
    assert all(str(entry) in caplog.text for entry in half)
    assert not verify(path).problems


def test_a_capture_that_was_killed_while_it_was_cut_can_be_read(tmp_path: Path) -> None:
    path, sample = tmp_path / "run.zarr", Sample()
    with StoreWriter.create(path).capture(sample.metadata(), capacity=40) as out:
        sample.prompt(out)
        for row in range(sample.n_prompt, sample.n_token):
            sample.step(out, row)
        deadline = time.monotonic() + 20
        while out.committed < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        for name in ("token_id", "lens_entropy", "attention_weight"):  # one after the other, as at the end
            array = zarr.open_group(path, mode="r+")[f"0000/{name}"]
            assert isinstance(array, zarr.Array)
            array.resize(tuple(min(size, sample.n_token) for size in array.shape))
            found = attnlens.open(path)[0]
            assert found.status == "partial"
            np.testing.assert_array_equal(found.token_id, sample.ids[: found.n_token])
            rows = found.attention.rows(range(found.committed))
            expected = sample.weights[:, :, : found.committed, : found.n_token].astype(np.float32)
            np.testing.assert_array_equal(rows, expected)
        out.fail("enough")
