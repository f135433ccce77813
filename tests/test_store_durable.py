"""A power cut: what a command has reported as done is on the disk, and what it replaces goes only after that."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import killing
from attnlens.schemas.errors import StoreError
from attnlens.store import durable, exchange
from attnlens.store.group import GROUP_SECONDS, Group
from attnlens.store.tools.crop import crop
from attnlens.store.verify import verify
from batch_runs import prompts, run
from disk_order import watched


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a tuned lens, a store of two captures, and the same in the forms that commands read."""
    path = tmp_path_factory.mktemp("durable")
    killing.write_sources(path)
    return path


COMMANDS: dict[str, killing.Command] = {
    "capture in new folders": lambda _, out: killing.one(out / "a" / "new.zarr"),
    **{name: command for name, command in killing.COMMANDS.items() if name != "render"},  # pictures are not flushed
}


def begun(folder: Path, tmp_path: Path) -> Path:
    """A folder with an old store and an old zip, on the disk."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(folder / "run.zarr", out / "old.zarr")
    shutil.copy(folder / "run.zarr.zip", out / "old.zarr.zip")
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_is_flushed_before_its_name_and_before_the_end(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = begun(folder, tmp_path)
    with watched(out, monkeypatch) as disk:
        COMMANDS[name](folder, out)
    assert disk.problems == []
    assert disk.published


@pytest.mark.parametrize("name", ["capture", "relens", "crop --overwrite"])
@pytest.mark.parametrize("without", ["syncfs", "exchange"])
def test_the_order_is_the_same_where_the_system_can_do_less(
    without: str, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = begun(folder, tmp_path)
    if without == "syncfs":
        monkeypatch.setattr(durable, "_syncfs", lambda _: False)
    else:
        monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    with watched(out, monkeypatch) as disk:
        COMMANDS[name](folder, out)
    assert disk.problems == []
    assert disk.calls["syncfs"] == 0 or without == "exchange"


def test_a_huge_store_is_flushed_without_a_look_at_each_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        folder = tmp_path / "run.zarr" / f"{number:04d}"
        folder.mkdir(parents=True)
        for name in range(25):
            (folder / str(name)).touch()
    looked, lstat, scandir = [0], Path.lstat, os.scandir

    def counted(self: Path) -> os.stat_result:
        looked[0] += 1
        return lstat(self)

    def listed(path: str) -> Any:
        looked[0] += 1
        return scandir(path)

    monkeypatch.setattr(Path, "lstat", counted)
    monkeypatch.setattr(os, "scandir", listed)
    with watched(tmp_path, monkeypatch) as disk:
        looked[0] = 0
        durable.flush(tmp_path / "run.zarr")
        assert looked[0] < 20 + sum(1 for _ in disk.everything())  # the disk's watcher looks at each, once
    assert disk.calls == {"fsync": 0, "syncfs": 1}


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="no list of what is mounted")
def test_what_is_mounted_inside_a_folder_is_flushed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly every system has something mounted in /dev."""
    flushed: list[int] = []

    def syncfs(folder: Path) -> bool:
        flushed.append(folder.stat().st_dev)
        return True

    monkeypatch.setattr(durable, "_syncfs", syncfs)
    durable.flush(Path("/dev"))
    folders = (path for path in Path("/dev").iterdir() if path.is_dir() and not path.is_symlink())
    inside = {folder.stat().st_dev for folder in folders if folder.is_mount()}
    assert inside | {Path("/dev").stat().st_dev} <= set(flushed)
    assert len(flushed) == len(set(flushed))


def test_captures_of_a_batch_share_their_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with watched(tmp_path, monkeypatch) as disk:
        report = run(tmp_path / "run.zarr", prompts(50), max_new_tokens=2)
    groups = 2 + (time.monotonic() - started) / GROUP_SECONDS
    assert len(report.captures) == 50
    assert disk.problems == []
    # A group flushes what captures hold, then their names; the store's own document is written at begin and end.
    assert disk.calls["syncfs"] <= 2 * groups + 4
    assert disk.calls["fsync"] <= 8 * groups + 16


def refusing(number: int) -> Callable[[Any], None]:
    def refuse(_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def everywhere(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No file and no file system can be flushed."""
    monkeypatch.setattr(durable, "_syncfs", lambda _: False)
    monkeypatch.setattr(os, "fsync", refusing(number))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", ["capture", "capture --prompts", "relens", "crop --overwrite", "pack --overwrite"])
def test_a_disk_that_does_not_keep_what_was_written_is_one_line(
    name: str, number: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = begun(folder, tmp_path)
    everywhere(monkeypatch, number)
    with pytest.raises(StoreError, match="did not keep" if number == errno.EIO else "disk full") as caught:
        COMMANDS[name](folder, out)
    assert "\n" not in str(caught.value)
    assert verify(out / "old.zarr").problems == []
    assert verify(out / "old.zarr.zip").problems == []


def test_a_file_system_that_cannot_flush_folders_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fsync = begun(folder, tmp_path), os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - Path.is_dir takes no number of a file that is open
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(durable, "_syncfs", lambda _: False)
    monkeypatch.setattr(os, "fsync", files_only)
    crop(folder / "run.zarr", out / "old.zarr", overwrite=True)
    assert verify(out / "old.zarr").problems == []


def test_a_group_takes_all_that_came_since_the_last_and_waits_for_a_second() -> None:
    groups: list[tuple[float, list[int]]] = []

    def publish(entries: Sequence[int]) -> None:
        groups.append((time.monotonic(), list(entries)))

    group: Group[int] = Group(publish)
    group.add(0)
    while not groups:
        time.sleep(0.001)
    for entry in range(1, 40):
        group.add(entry)
    while len(groups) < 2:
        time.sleep(0.01)
    group.add(40)
    group.close()  # waits for no second
    assert [entries for _, entries in groups] == [[0], list(range(1, 40)), [40]]
    assert groups[1][0] - groups[0][0] >= GROUP_SECONDS * 0.99
    assert groups[2][0] - groups[1][0] < GROUP_SECONDS


def test_the_error_of_a_group_reaches_whoever_waits() -> None:
    def publish(_: Sequence[int]) -> None:
        raise StoreError("the disk")

    group: Group[int] = Group(publish)
    group.add(0)
    with pytest.raises(StoreError, match="the disk"):
        group.wait()
    with pytest.raises(StoreError, match="the disk"):
        group.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_sees_the_flush_between_the_last_byte_and_the_rename(folder: Path, tmp_path: Path) -> None:
    """The same of one command as the system sees it: calls of every thread and library."""
    trace = tmp_path / "trace"
    calls = "trace=openat,rename,renameat,renameat2,fsync,syncfs,unlink,unlinkat"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", calls, sys.executable, "-m", "attnlens"]
    store = shutil.copytree(folder / "run.zarr", tmp_path / "old.zarr")
    command += ["crop", str(folder / "run.zarr"), "-o", str(store), "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    lines = [line for line in trace.read_text().splitlines() if str(tmp_path) in line and " = -1 " not in line]
    place = next(at for at, line in enumerate(lines) if "RENAME_EXCHANGE" in line)
    written = [at for at, line in enumerate(lines) if "O_CREAT" in line or "O_WRONLY" in line]
    synced = [at for at, line in enumerate(lines) if "syncfs(" in line]
    parents = [at for at, line in enumerate(lines) if "fsync(" in line and f"<{tmp_path}>" in line and at > place]
    removed = [at for at, line in enumerate(lines) if "unlink" in line and at > place]
    assert max(written) < max(synced) < place < min(parents) < min(removed)
