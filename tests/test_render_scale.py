"""Many pictures: worker processes, kills, resuming, bounded memory."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens.render.options import RenderOptions
from attnlens.render.painter import squeeze
from attnlens.render.pictures import RenderReport, render
from attnlens.render.run import workers
from attnlens.render.run.ctrl_c import held, noticed
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
    begin = "from attnlens.__main__ import main; print('begun', flush=True); main()"  # Ctrl-C is ours from here on
    return [sys.executable, "-c", begin, "render", str(made.path), "-o", str(folder), *options]


def living(group: int) -> list[str]:
    """Processes of a process group, those that only wait to be collected left out."""
    said = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], check=True, capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]


def interrupt(args: list[str], when: Callable[[float], bool], how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Run a command in a group of its own, signal the group once `when` of the seconds since; code, stderr."""
    # A shell that starts tests in the background lets them ignore Ctrl-C, and they what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    assert run.stdout is not None
    assert run.stdout.readline() == b"begun\n"
    begun = time.monotonic()
    while not when(passed := time.monotonic() - begun) and passed < 30 and run.poll() is None:
        time.sleep(0.002)
    if run.poll() is None:
        os.killpg(run.pid, how)
    try:
        said = run.communicate(timeout=20 if how == signal.SIGKILL else 5)[1].decode()
        deadline = time.monotonic() + 2
        while living(run.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not living(run.pid)
        return run.returncode, said
    finally:
        if living(run.pid):  # else the number may be another's by now
            os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_and_resumed(
    made: Made, expected: dict[str, bytes], tmp_path: Path, how: signal.Signals
) -> None:
    code, said = interrupt(command(made, tmp_path, "--workers", "2"), lambda _: len(contents(tmp_path)) >= 5, how)
    assert code in ((-signal.SIGKILL,) if how == signal.SIGKILL else (130, 0))
    assert "Traceback" not in said
    for name, data in contents(tmp_path).items():
        assert data == expected[name]
    subprocess.run(command(made, tmp_path, "--resume"), check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.nightly)])
def test_ctrl_c_at_any_moment_is_one_line_and_ends_at_once(
    made: Made, expected: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    rng = random.Random(count)
    for index in range(count):
        folder = tmp_path / str(index)
        moment = rng.uniform(0, 1)
        code, said = interrupt(command(made, folder, "--workers", "3"), lambda passed, at=moment: passed > at)  # type: ignore[misc]
        assert code in (130, 0), said
        lines = [line for line in said.splitlines() if not line.startswith("note: ")]
        assert lines == (["lens: interrupted"] if code else [])
        for name, data in contents(folder).items():
            assert data == expected[name]


def test_an_interrupt_that_a_library_swallows_still_interrupts() -> None:
    def swallow() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    drawn = []
    with pytest.raises(KeyboardInterrupt), noticed() as check:  # noqa: PT012 - the second line must not be reached
        swallow()
        check()
        drawn.append("a wrong picture")
    with pytest.raises(KeyboardInterrupt), noticed():  # noqa: PT012 - as numpy does
        swallow()
        raise TypeError("cannot compare")
    assert not drawn
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_waits_for_what_cannot_bear_it() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done


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
