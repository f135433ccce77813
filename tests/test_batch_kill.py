"""Processes that are killed among many prompts, and processes that share them: the store comes out the same."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import attnlens
from attnlens.schemas.errors import AttnlensError, InputError
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from batch_runs import assert_same, child, prompts, run
from store_sample import Sample, tree_hash

COUNT = int(os.environ.get("ATTNLENS_PROMPTS", "8"))
"""How many prompts; 50 of them is the acceptance run."""
KILLS = int(os.environ.get("ATTNLENS_KILLS", "1"))
"""How often each run is killed."""


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prompts by one process, never killed."""
    path = tmp_path_factory.mktemp("truth") / "run.zarr"
    assert run(path, prompts(COUNT)).left == 0
    return path


def statuses(path: Path) -> list[str]:
    try:
        return [found.status for found in attnlens.open(path)]
    except AttnlensError:
        return []


def wait_for(path: Path, complete: int, *processes: object) -> None:
    deadline = time.monotonic() + 120
    while statuses(path).count("complete") < complete:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigkill_and_resume(tmp_path: Path, truth: Path) -> None:
    path, chance = tmp_path / "run.zarr", random.Random(11)
    for kill in range(KILLS):
        with child(path, COUNT, *(["resume"] if kill else []), pause=0.03) as victim:
            wait_for(path, COUNT * (kill + 1) // (KILLS + 2) + 1)
            time.sleep(chance.random() * 0.5)
            with pytest.raises(InputError, match="is being written by process"):
                run(path, prompts(COUNT), resume=True)
            victim.send_signal(signal.SIGKILL)
        assert victim.returncode == -signal.SIGKILL
        assert statuses(path).count("complete") < COUNT
    kept = statuses(path).count("complete")
    report = run(path, prompts(COUNT), resume=True)
    assert len(report.kept) >= kept  # and those that were finished, but not yet published
    assert len(report.captures) == COUNT - len(report.kept)
    assert_same(path, truth)
    assert not verify(path).problems
    assert not list(path.rglob("*.partial"))


def test_two_processes_share_the_prompts(tmp_path: Path, truth: Path) -> None:
    path = tmp_path / "run.zarr"
    with child(path, COUNT, pause=0.02, rank=0, world=2) as one, child(path, COUNT, pause=0.02, rank=1, world=2) as two:
        outs = [process.communicate(timeout=240) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outs
    counts = [int(out.split("done ")[1].split()[0]) for out, _ in outs]
    assert sum(counts) == COUNT
    assert min(counts) > 0
    assert_same(path, truth)
    store = attnlens.open(path)
    assert [entry.status for entry in store.metadata.index or []] == ["complete"] * COUNT
    assert not verify(path).problems
    assert not list(path.rglob("*.partial"))


def test_one_of_two_processes_is_killed(tmp_path: Path, truth: Path) -> None:
    path, chance = tmp_path / "run.zarr", random.Random(4)
    pair = [child(path, COUNT, pause=0.03, rank=rank, world=2) for rank in range(2)]
    wait_for(path, 2)
    time.sleep(chance.random() * 0.3)
    victim, survivor = chance.sample(pair, 2)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    out, err = survivor.communicate(timeout=240)
    assert survivor.returncode == 0, err
    assert statuses(path).count("complete") >= COUNT - 1  # it cost the prompt that the process was at, no more
    if "complete" not in statuses(path) or statuses(path).count("complete") < COUNT:
        assert " 1\n" in out  # and the survivor says so
    run(path, prompts(COUNT), resume=True)
    assert_same(path, truth)
    assert not verify(path).problems
    assert not list(path.rglob("*.partial"))


@pytest.mark.parametrize("victims", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_two_processes_replace_a_store_together(tmp_path: Path, truth: Path, victims: int) -> None:
    path, beside, chance = tmp_path / "run.zarr", tmp_path / "run.new.zarr", random.Random(6)
    Sample().write(path)
    before = tree_hash(path / "0000")
    one = child(path, COUNT, "overwrite", pause=0.03, rank=0, world=2)
    wait_for(beside, 1)
    two = child(path, COUNT, "overwrite", pause=0.03, rank=1, world=2)  # comes when some is done
    pair = [one, two]
    if victims:
        wait_for(beside, 2)
        time.sleep(chance.random() * 0.3)
        victim = pair.pop(0)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        assert tree_hash(path / "0000") == before
    for process in pair:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    if not victims or statuses(path) == ["complete"] * COUNT:
        assert_same(path, truth)  # the last of them has put it in its place
    else:
        assert tree_hash(path / "0000") == before
        run(path, prompts(COUNT), resume=True)
    assert_same(path, truth)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.zarr"]
    assert not list(path.rglob("*.partial"))


def test_two_writers_by_mistake(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    sample = Sample()
    with StoreWriter.create(path).capture(sample.metadata(), capacity=12) as out:
        for options in ({"append": True}, {"overwrite": True}):
            with pytest.raises(InputError, match=f"is being written by process {os.getpid()} on "):
                StoreWriter.create(path, **options)
        out.fail("enough")
    StoreWriter.create(path, append=True)
    (path / "writer.partial").write_text('{"process": 1, "host": "gone", "since": "long ago"}')
    sample.write(StoreWriter.create(path, append=True))  # a file that a killed process left means nothing
    assert attnlens.open(path).ids == ["0000", "0001"]
    assert not verify(path).problems
