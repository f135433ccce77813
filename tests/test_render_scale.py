"""Many pictures: worker processes, kills, resuming, bounded memory."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens.render.options import RenderOptions
from attnlens.render.painter import squeeze
from attnlens.render.pictures import RenderReport, render
from attnlens.render.run import workers
from attnlens.render.run.whole import is_whole
from attnlens.schemas.errors import AttnlensError, InputError
from render_store import Made, make

SMALL = RenderOptions(window=5, step=2, dpi=40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made") / "run.zarr", n_prompt=8, n_generated=14)


@pytest.fixture(scope="module")
def expected(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    render(made.path, folder, options=SMALL)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("attn_*")}


def test_workers_make_the_same_bytes(
    made: Made, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WORTH", 1)
    report = render(made.path, tmp_path, options=SMALL, n_workers=3)
    assert contents(tmp_path) == expected
    assert report.count == len(expected)
    assert report.missing_characters == render(made.path, tmp_path, options=SMALL).missing_characters


def test_few_pictures_start_no_process(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "context", lambda: pytest.fail("a pool was made"))
    few = dataclasses.replace(SMALL, queries="21", window=32)
    assert render(made.path, tmp_path, options=dataclasses.replace(few, queries="20"), n_workers=8).count == 1


def test_an_error_in_a_worker_is_told(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1)
    (tmp_path / "attn_3_1.png").mkdir()  # no file can take this name
    with pytest.raises(AttnlensError, match=r"cannot write .*attn_3_1"):
        render(made.path, tmp_path, options=SMALL, n_workers=2)


def resumed(made: Made, folder: Path, options: RenderOptions = SMALL) -> RenderReport:
    return render(made.path, folder, options=options, resume=True)


def test_resume_draws_what_is_missing_cut_or_changed(made: Made, expected: dict[str, bytes], tmp_path: Path) -> None:
    render(made.path, tmp_path, options=SMALL)
    names = sorted(expected)
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(expected[names[1]][:-20])
    changed = bytearray(expected[names[2]])
    changed[len(changed) // 2] ^= 1
    (tmp_path / names[2]).write_bytes(changed)
    (tmp_path / names[3]).write_bytes(b"")
    report = resumed(made, tmp_path)
    assert (report.count, report.kept) == (4, len(expected) - 4)
    assert contents(tmp_path) == expected
    assert resumed(made, tmp_path).count == 0


@pytest.mark.parametrize(
    "change", [{"heads": "mean"}, {"cmap": "viridis"}, {"step": 3}, {"palette": True}, {"dpi": 41}]
)
def test_resume_keeps_no_picture_of_another_run(made: Made, tmp_path: Path, change: dict[str, object]) -> None:
    options = dataclasses.replace(SMALL, queries="20")
    render(made.path, tmp_path, options=options)
    other = dataclasses.replace(options, **change)  # type: ignore[arg-type]
    assert resumed(made, tmp_path, other).kept == 0
    assert resumed(made, tmp_path, other).count == 0


def test_a_capture_that_grew_is_drawn_again(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr", n_generated=6, broken_off=9)
    assert resumed(made, tmp_path / "out").count > 0
    assert resumed(made, tmp_path / "out").count == 0
    later = time.time() + 10
    os.utime(made.path / "0000" / "zarr.json", (later, later))
    assert resumed(made, tmp_path / "out").kept == 0


def command(made: Made, folder: Path, *more: str) -> list[str]:
    options = ["--window", "5", "--step", "2", "--dpi", "40", "--quiet", *more]
    return [sys.executable, "-m", "attnlens", "render", str(made.path), "-o", str(folder), *options]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_and_resumed(
    made: Made, expected: dict[str, bytes], tmp_path: Path, how: signal.Signals
) -> None:
    run = subprocess.Popen(command(made, tmp_path, "--workers", "2"), stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 30
    while len(contents(tmp_path)) < 5 and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.002)
    os.killpg(run.pid, how)
    said = run.communicate(timeout=20)[1].decode()
    assert "Traceback" not in said
    for name, data in contents(tmp_path).items():
        assert data == expected[name]
    subprocess.run(command(made, tmp_path, "--resume"), check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path) == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the signal mask of a process in /proc")
def test_helpers_never_see_ctrl_c() -> None:
    """Not even while they start, when Python has no handler of ours yet."""
    code = """if 1:
        from multiprocessing import forkserver
        from attnlens.render.run.helpers import prepare
        prepare(2)
        for pid in ("self", forkserver._forkserver._forkserver_pid):
            print(next(line for line in open(f"/proc/{pid}/status") if line.startswith("SigBlk")).split()[1])
    """
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    own, server = (int(mask, 16) for mask in said.split())
    interrupt = 1 << signal.SIGINT - 1
    assert not own & interrupt
    assert server & interrupt


@pytest.mark.parametrize("n_workers", [0, -1])
def test_no_workers(made: Made, tmp_path: Path, n_workers: int) -> None:
    with pytest.raises(InputError, match="--workers"):
        render(made.path, tmp_path, n_workers=n_workers)


def test_only_whole_files_are_whole(expected: dict[str, bytes]) -> None:
    data = next(iter(expected.values()))
    assert is_whole(data)
    assert not is_whole(data + b"\n")
    assert not any(is_whole(data[:end]) for end in range(0, len(data), 97))
    assert is_whole(b"<svg></svg>\n")
    assert not is_whole(b"<svg>")


def test_the_first_bytes_go_to_isal_alone() -> None:
    """In a longer first piece it hashes an address; 3 of 9000 pictures then had other bytes, by where its state lay."""
    pytest.importorskip("isal")
    lines = np.random.default_rng(0).integers(0, 3, (60, 40)).astype(np.uint8)
    stream = b"".join(squeeze.Squeezer().squeeze(lines, []))
    end = stream.index(b"\0\0\xff\xff") + 4
    assert zlib.decompressobj().decompress(stream[:end]) == lines.tobytes()[:8]


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=9),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_squeezed_lines_are_the_lines(runs: list[int], width: int, seed: int, by_isal: bool) -> None:
    rng = np.random.default_rng(seed)
    edges = np.cumsum(runs)
    lines = rng.integers(0, 3, (int(edges[-1]) + 1, width)).astype(np.uint8)
    still = [(int(start), int(stop)) for start, stop in zip(edges[:-1:2], edges[1::2], strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        if not by_isal:
            patch.setattr(squeeze, "isal_zlib", None)
        squeezer = squeeze.Squeezer()
    for _ in range(2):
        assert zlib.decompress(b"".join(squeezer.squeeze(lines, still))) == lines.tobytes()
        moving = np.ones(len(lines), np.bool_)
        for start, stop in still:
            moving[start:stop] = False
        lines[moving] = rng.integers(0, 255, (int(moving.sum()), width))
