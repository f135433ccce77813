"""What cannot be written, read or understood ends in one line that names it: never a traceback, nothing left behind."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from attnlens import cli
from attnlens.schemas.errors import InputError, StoreError
from attnlens.store.batch import open_batch
from attnlens.store.places import open_place
from attnlens.store.tools.pack import pack
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample

Lens = Callable[..., str]
WRITERS = {
    "crop": ("crop", "run.zarr", "-q", "--lite", "-o"),
    "pack": ("pack", "run.zarr", "-q", "-o"),
    "unpack": ("unpack", "run.zarr.zip", "-q", "-o"),
    "merge": ("merge", "run.zarr", "run.zarr", "-q", "-o"),
    "npz": ("export", "run.zarr", "-q", "--format", "npz", "-o"),
    "html": ("export", "run.zarr", "-q", "--format", "html", "-o"),
    "inif": ("export", "run.zarr", "-q", "--format", "inif", "-o"),
    "render": ("render", "run.zarr", "-q", "--workers", "1", "--queries", "5", "-o"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    Sample().write(folder / "run.zarr")
    pack(folder / "run.zarr")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a store and a packed store."""
    (tmp_path / "run.zarr").symlink_to(made / "run.zarr")
    (tmp_path / "run.zarr.zip").symlink_to(made / "run.zarr.zip")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lens:
    """Runs a command that must end in one line, within 20 s; the line."""
    logger = logging.getLogger("attnlens")
    handlers = list(logger.handlers)

    class TooLongError(BaseException):
        pass

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise TooLongError

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["lens", *map(str, arguments)])
        before = signal.signal(signal.SIGALRM, end)
        signal.alarm(20)
        try:
            with pytest.raises(SystemExit) as left:
                cli.main()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            logger.handlers[:] = handlers
        said = capsys.readouterr().err.strip().split("\n")
        assert left.value.code == 1
        assert len(said) == 1
        assert said[0].startswith("lens: ")
        return said[0]

    return run


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that takes nothing: one that is mounted so, or where that is not allowed, /proc."""
    folder = tmp_path_factory.mktemp("mounted")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True, check=False)
    yield folder if mounted.returncode == 0 else Path("/proc")
    if mounted.returncode == 0:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("command", WRITERS)
def test_where_nothing_can_be_written_the_real_reason_is_told(
    command: str, folder: Path, lens: Lens, read_only: Path
) -> None:
    """The error of the cleanup, that nothing is there to be removed, must not take the place of the real one."""
    (folder / "file").write_text("x")
    ending = ".zip" if command == "pack" else ""
    long = "a" * 300
    for place in (
        read_only / "x",
        read_only / "a/b/x",
        Path("file/x"),
        Path(long),
        Path(long, "x"),
        Path("f/" * 3000, "x"),
    ):
        line = lens(*WRITERS[command], f"{place}{ending}")
        assert str(place)[:200] in line
        assert any(word in line for word in ("Read-only", "No such file", "Not a directory", "too long"))
    assert sorted(path.name for path in folder.iterdir()) == ["file", "run.zarr", "run.zarr.zip"]


@pytest.mark.parametrize("command", ["crop", "npz", "html"])
def test_a_name_of_240_characters_is_written(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name under which it is made is not longer."""
    name = "a" * 240
    monkeypatch.setattr(sys, "argv", ["lens", *WRITERS[command], name])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    assert (folder / name).exists()


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_pipes_devices_and_links_to_nothing_are_not_replaced(
    command: str, overwrite: bool, folder: Path, lens: Lens
) -> None:
    """As root, a rename onto `/dev/null` puts a file where the device was, for every program of the machine."""
    ending = ".zip" if command == "pack" else ""
    os.mkfifo(f"pipe{ending}")
    Path(f"link{ending}").symlink_to(f"pipe{ending}")
    Path(f"broken{ending}").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"socket{ending}")
    if os.geteuid() == 0:
        os.mknod(f"device{ending}", 0o20666, os.makedev(1, 3))
    before = {entry.name: os.lstat(entry) for entry in folder.iterdir()}
    more = ["--overwrite"] if overwrite and command != "render" else []
    for name in sorted(before.keys() - {"run.zarr", "run.zarr.zip"}):
        assert name in lens(*WRITERS[command], name, *more)
    assert {entry.name: os.lstat(entry).st_ino for entry in folder.iterdir()} == {
        name: about.st_ino for name, about in before.items()
    }


def test_a_url_is_not_written_to_a_folder_of_that_name(folder: Path, lens: Lens) -> None:
    for url in ("http://host/x", "s3://bucket/x", "hf://a/b/c", "https://"):
        assert "looks like a URL" in lens("crop", "run.zarr", "-q", "--lite", "-o", url)
        assert "looks like a URL" in lens("render", "run.zarr", "-q", "-o", url)
    assert sorted(path.name for path in folder.iterdir()) == ["run.zarr", "run.zarr.zip"]


@pytest.mark.parametrize("kind", ["pipe", "broken link", "device"])
def test_a_store_whose_own_document_is_no_file_is_not_waited_for(
    kind: str, folder: Path, made: Path, lens: Lens
) -> None:
    """Neither is it overwritten."""
    place = folder / "odd.zarr"
    place.mkdir()
    match kind:
        case "pipe":
            os.mkfifo(place / "zarr.json")
        case "device":
            if os.geteuid() != 0:
                pytest.skip("only root makes devices")
            os.mknod(place / "zarr.json", 0o20666, os.makedev(1, 5))  # zeros, without end
        case _:
            (place / "zarr.json").symlink_to("nowhere")
    for command in WRITERS.values():
        assert "odd.zarr" in lens(*(str(place) if part.startswith("run") else part for part in command), "out")
    for name in ("crop", "merge"):
        line = lens(*WRITERS[name], place, "--overwrite")
        assert "will not overwrite" in line


def test_stores_whose_names_no_file_system_takes(lens: Lens, folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    os.mkfifo("pipe")
    for name in ("x" * 300, "x/" * 3000, "run.zarr.zip/x", "loop"):
        assert name[:100] in lens("info", name)
    assert lens("info", "pipe") == "lens: pipe is a pipe; a store is a folder with a zarr.json, or a .zarr.zip"


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://[::g]/x", "http://[v1.x]/x", "http://127.0.0.1:99999/x.zarr", "http://127.0.0.1:-1/x",
     "http://127.0.0.1:abc/x", "http://127.0.0.1:0/x", "http:///x", "https://", "http://:80/x", "http:// /x",
     "http://a b/x", "http://127.0.0.1:1/x?y=1", "http://127.0.0.1:1/\x1b[31m", "http://127.0.0.1:1/%00",
     "http://\ud800/x", "s3://", "s3:///x", "s3://b/../c", "gs://[", "hf://", "hf://a", "hf://[::1/x/y", "file://",
     "file://host/x", "file://run.zarr", "file://[::1", "file:///%00", "FILE:///", "http://127.0.0.1\\x/y"],
)  # fmt: skip
def test_addresses_that_are_none(url: str, lens: Lens, folder: Path) -> None:
    """Nothing is asked for: each is refused as it is read, by its name."""
    pytest.importorskip("obstore")
    with pytest.raises((InputError, StoreError)) as caught:
        open_place(url)
    assert "\n" not in str(caught.value)
    assert url.split("://")[0] in str(caught.value)
    lens("info", url)
    lens("merge", "run.zarr", url, "-q", "-o", "out")
    lens("view", url, "--no-open")


def test_a_password_in_an_address_is_not_told() -> None:
    for url in (
        "http://me:secret@host/x",
        "http://me:secret@host/x?y",
        "http://me:secret@[::1",
        "http://:secret@host:99999/",
    ):
        with pytest.raises(InputError) as caught:
            open_place(url)
        assert "secret" not in str(caught.value)


SCRIPT = """
print("began", flush=True)
import attnlens.render.run.workers as workers
workers.WORTH = 1  # helpers for a few pictures, too
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.hdf5_import import import_hdf5

export_hdf5("run.zarr", "run.h5")
import_hdf5("run.h5", "again.zarr")
report = render("again.zarr", "pictures", options=RenderOptions(queries="all"), n_workers=2)
print("ended", report.count, flush=True)
"""


def test_a_plain_script_runs_once_whatever_helpers_it_starts(folder: Path) -> None:
    """One without `if __name__ == "__main__"`, which `multiprocessing` would run again in each helper."""
    pytest.importorskip("h5py")
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["began", "ended", str(len(list((folder / "pictures").glob("*.png"))))]
    assert verify("again.zarr").passed


def test_a_capture_is_not_begun_at_a_url_or_a_link_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="looks like a URL"):
        StoreWriter.create(Path("s3://bucket/run.zarr"))
    with pytest.raises(InputError, match="looks like a URL"):
        open_batch("hf://a/b/run.zarr", [], {}, mode="new", run="r", shared=False)
    for place in ("loop", "loop/x", "x" * 300):
        with pytest.raises((InputError, StoreError), match=place[:100]):
            Sample().write(tmp_path / place)
    assert [entry.name for entry in tmp_path.iterdir()] == ["loop"]
