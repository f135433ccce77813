"""Crash images: what reached the disk when a command returned, mounted again as after a power cut.

A file system in a file, mounted through a loop device. A copy of the file, made without any flush, is what a disk would
hold; mounting the copy replays its journal. Needs root and loop devices.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attnlens.store.tools.pack import pack
from test_capture_evidence import write_tuned
from test_relens import write_store
from tiny import write_hf

VERIFY = """
import json, sys
from pathlib import Path
from attnlens.schemas.errors import AttnlensError
from attnlens.store.verify import verify

def problems(path):
    try:
        return [str(problem) for problem in verify(path).problems] if path.exists() else None
    except AttnlensError as error:
        return [str(error)]

print(json.dumps({name: problems(Path(sys.argv[1], name)) for name in sys.argv[2:]}))
"""
MOMENTS = (0.0, 0.02, 0.05, 0.1, 0.3, 0.7, 1.5, 3.0, 5.5, 8.0)
"""Seconds after a command has returned. ext4 writes its journal every 5 s by itself."""
SIZE = 96 << 20

pytestmark = pytest.mark.nightly


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        for _ in range(50):
            if subprocess.run(["umount", place], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", place], check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a lens and a store, on the machine's own file system."""
    if os.geteuid() or not shutil.which("mkfs.ext4") or not Path("/dev/loop-control").exists():
        pytest.skip("crash images need root, mkfs.ext4 and loop devices")
    path = tmp_path_factory.mktemp("crash")
    write_hf(path / "model")
    write_tuned(path / "lens", 3, 32)
    write_store(path / "run.zarr", path)
    return path


@pytest.fixture
def disk(source: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An image, and where it is mounted; it holds an old store and an old zip, on the disk."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(image, tmp_path / "mounted") as place:
        shutil.copytree(source / "run.zarr", place / "old.zarr")
        pack(source / "run.zarr", place / "old.zarr.zip")
        os.sync()
        yield image, place


COMMANDS: dict[str, tuple[str, Callable[[Path, Path], list[str]]]] = {
    "capture": ("new.zarr", lambda source, disk: captured(source, disk / "new.zarr")),
    "capture --append": ("old.zarr", lambda source, disk: [*captured(source, disk / "old.zarr"), "--append"]),
    "crop --overwrite": (
        "old.zarr",
        lambda source, disk: ["crop", f"{source}/run.zarr", "-o", f"{disk}/old.zarr", "--overwrite", "--lite"],
    ),
    "relens": (
        "old.zarr",
        lambda source, disk: ["relens", f"{disk}/old.zarr", "-m", f"{source}/model", "--lens", f"tuned:{source}/lens"],
    ),
    "pack": ("new.zip", lambda source, disk: ["pack", f"{source}/run.zarr", "-o", f"{disk}/new.zip"]),
    "pack --overwrite": (
        "old.zarr.zip",
        lambda source, disk: ["pack", f"{source}/run.zarr", "-o", f"{disk}/old.zarr.zip", "--overwrite"],
    ),
}


def captured(source: Path, store: Path) -> list[str]:
    return ["capture", "-m", f"{source}/model", "--raw", "-p", "Who is Bob?", "-n", "40", "-o", str(store)]


def started(command: list[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "attnlens", *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def after_a_cut(image: Path, names: list[str]) -> dict[str, list[str] | None]:
    """What `lens verify` finds in stores of a crash image; None where there is no store."""
    folder = image.parent / "again"
    with mounted(image, folder):
        # A process of its own: files that are open or mapped would keep the image mounted.
        done = subprocess.run(
            [sys.executable, "-c", VERIFY, folder, *names], capture_output=True, text=True, check=True
        )
        found: dict[str, list[str] | None] = json.loads(done.stdout)
        return found


@pytest.mark.parametrize("name", COMMANDS)
def test_ten_moments_after_a_command_has_returned(name: str, source: Path, disk: tuple[Path, Path]) -> None:
    image, place = disk
    made, command = COMMANDS[name]
    running = started(command(source, place))
    _, errors = running.communicate(timeout=120)
    returned = time.monotonic()
    assert running.returncode == 0, errors
    images = []
    for number, moment in enumerate(MOMENTS):
        time.sleep(max(0.0, returned + moment - time.monotonic()))
        images.append(image.with_name(f"cut{number}"))
        subprocess.run(["cp", "--sparse=always", image, images[-1]], check=True)
    expected: dict[str, list[str] | None] = {"old.zarr": [], "old.zarr.zip": [], made: []}
    assert [after_a_cut(copy, list(expected)) for copy in images] == [expected] * len(MOMENTS)
    new = image.parent / "again"
    with mounted(images[0], new):  # the new one, not the old
        for path in sorted(path for path in (place / made).rglob("*") if path.is_file()):
            assert (new / made / path.relative_to(place / made)).read_bytes() == path.read_bytes()
        if (place / made).is_file():
            assert (new / made).read_bytes() == (place / made).read_bytes()


@pytest.mark.parametrize("name", COMMANDS)
def test_moments_before_a_command_returns(name: str, source: Path, disk: tuple[Path, Path]) -> None:
    """What was there before is whole: as it was, or as it is to be."""
    image, place = disk
    running = started(COMMANDS[name][1](source, place))
    images: list[Path] = []
    while running.poll() is None:
        running.send_signal(signal.SIGSTOP)
        images.append(image.with_name(f"cut{len(images)}"))
        subprocess.run(["cp", "--sparse=always", image, images[-1]], check=True)
        running.send_signal(signal.SIGCONT)
        time.sleep(0.15)
    assert running.wait() == 0
    running.communicate()
    for copy in images:
        found = after_a_cut(copy, ["old.zarr", "old.zarr.zip"])
        if name == "capture --append":  # the capture that was running may be damaged, not those that were there
            found["old.zarr"] = [problem for problem in found["old.zarr"] or [] if "0002" not in problem]
        assert found == {"old.zarr": [], "old.zarr.zip": []}, copy.name
