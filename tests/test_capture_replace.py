"""`--overwrite`: the old store stays until the new one is complete, wherever the run is killed; --resume goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.schemas.errors import InputError
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from batch_runs import assert_same, prompts, run
from forks import Forked
from store_sample import Sample, tree_hash

KILLS = int(os.environ.get("ATTNLENS_KILLS", "2"))
"""How often to kill each command; 25 is the acceptance run."""

CHILD = """
import os, signal, sys, time
path, moment = sys.argv[1:3]
if moment.startswith("at"):  # before the numbered step of putting the new store in its place
    from attnlens.store import exchange, replacement
    steps = [0]
    def step(then):
        def called(*args, **options):
            if steps[0] == int(moment[2:]):
                os.kill(os.getpid(), signal.SIGKILL)
            steps[0] += 1
            return then(*args, **options)
        return called
    replacement.take_place = step(replacement.take_place)
    replacement._remove = step(replacement._remove)
    replacement.shutil.rmtree = step(replacement.shutil.rmtree)
"""

ONE = (
    CHILD
    + """
from store_sample import Sample
from attnlens.store.writer import StoreWriter
sample = Sample(seed=1)
writer = StoreWriter.create(path, overwrite="fresh" in sys.argv, resume="resume" in sys.argv)
with writer.capture(sample.metadata(), capacity=sample.n_token) as out:
    sample.prompt(out)
    for row in range(sample.n_prompt, sample.n_token):
        print(row, flush=True)
        time.sleep(0.02)
        sample.step(out, row)
    out.finish({})
print("done", flush=True)
"""
)

MANY = (
    CHILD
    + """
from batch_runs import prompts, run
class Told:
    def stage(self, name, total=None, unit=""): print(name, flush=True)
    def advance(self, amount=1, note=""): pass
    def end(self): pass
run(path, prompts(4), overwrite="fresh" in sys.argv, resume="resume" in sys.argv, progress=Told())
print("done", flush=True)
"""
)


def kill(code: str, path: Path, moment: str, chance: random.Random, lines: int, *flags: str) -> None:
    with Forked(code, path, moment, *flags) as child:
        if moment == "random":
            for _ in range(chance.randint(1, lines)):
                child.stdout.readline()
            time.sleep(chance.random() * 0.1)
            child.send_signal(signal.SIGKILL)
        child.communicate()


def moments(chance: random.Random) -> list[str]:
    """Random ones, and every second one at a step of the exchange."""
    return [f"at{number // 2 % 3}" if number % 2 else "random" for number in range(KILLS)]


def arrays(path: Path) -> dict[str, Any]:
    group: Any = zarr.open_group(path, mode="r")["0000"]
    return {key: array[:] for key, array in group.arrays() if not key.startswith("manifest")}


def assert_alone(path: Path) -> None:
    """Nothing lies beside the store, and nothing half-written in it."""
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]
    assert not list(path.rglob("*.partial"))
    assert not verify(path).problems


def test_a_killed_overwrite_leaves_the_old_store_or_the_new(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    Sample(seed=1).write(tmp_path / "truth" / "run.zarr")
    expected, chance = arrays(tmp_path / "truth" / "run.zarr"), random.Random(2)
    for number, moment in enumerate(moments(chance)):
        path = tmp_path / f"{number}" / "run.zarr"
        path.parent.mkdir()
        Sample(seed=0, n_prompt=9).write(path)
        old = arrays(path)
        kill(ONE, path, moment, chance, 12, "fresh")
        found = arrays(path)
        assert attnlens.open(path)["0000"].status == "complete"
        which = old if found["token_id"].shape == old["token_id"].shape else expected
        assert all(np.array_equal(found[key], which[key], equal_nan=found[key].dtype.kind == "f") for key in which)
        beside = path.with_name("run.new.zarr")
        if beside.exists() and attnlens.open(beside).ids:  # it can be opened under its own name
            assert attnlens.open(beside)[0].status in ("planned", "partial", "complete")
        with Forked(ONE, path, "never", "fresh", "resume") as again:
            out, err = again.communicate(timeout=60)
        assert "done" in out, err
        now = arrays(path)
        assert now.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(now[key], expected[key], err_msg=f"{moment} {key}")
        assert_alone(path)


def test_a_killed_overwrite_of_many_prompts_goes_on(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    truth, chance = tmp_path / "truth" / "run.zarr", random.Random(5)
    run(truth, prompts(4))
    for number, moment in enumerate(moments(chance)):
        path = tmp_path / f"{number}" / "run.zarr"
        path.parent.mkdir()
        Sample().write(path)
        before = arrays(path)
        kill(MANY, path, moment, chance, 16, "fresh")
        beside = path.with_name("run.new.zarr")
        if len(attnlens.open(path).ids) == 1:
            assert arrays(path).keys() == before.keys()
            done = (
                [found.id for found in attnlens.open(beside) if found.status == "complete"] if beside.exists() else []
            )
            kept = {name: tree_hash(beside / name) for name in done}
            if done:  # finished captures are never passed over
                with pytest.raises(InputError, match=r"an unfinished replacement of .*run.zarr is in .*run.new.zarr"):
                    run(path, prompts(4), overwrite=True)
            calls: tuple[dict[str, Any], ...] = ({}, {"append": True})
            for options in calls:
                if beside.exists():
                    with pytest.raises(InputError, match="unfinished replacement"):
                        run(path, prompts(4), **options)
            run(path, prompts(4), resume=True, overwrite=not done)
            for name, digest in kept.items():
                assert tree_hash(path / name) == digest
        else:
            assert_same(path, truth)
            run(path, prompts(4), resume=True)
        assert_same(path, truth)
        assert_alone(path)


def test_a_failed_capture_leaves_the_old_store_at_its_name(tmp_path: Path) -> None:
    path, sample = tmp_path / "run.zarr", Sample(seed=1)
    Sample().write(path)
    before = tree_hash(path)
    with StoreWriter.create(path, overwrite=True).capture(sample.metadata(), capacity=sample.n_token) as out:
        out.fail("nothing yet")
    assert tree_hash(path) == before
    assert_alone(path)
    with StoreWriter.create(path, overwrite=True).capture(sample.metadata(), capacity=sample.n_token) as out:
        with pytest.raises(InputError, match="is being written by process"):
            StoreWriter.create(path, append=True)
        sample.prompt(out)
        out.fail("half")
    assert tree_hash(path) == before
    assert attnlens.open(tmp_path / "run.new.zarr")[0].status == "partial"
    sample.write(StoreWriter.create(path, resume=True))
    np.testing.assert_array_equal(attnlens.open(path)[0].token_id, sample.ids)
    assert_alone(path)


def test_a_prompt_that_fails_leaves_the_old_store_at_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.zarr"
    Sample().write(path)
    before = tree_hash(path)
    report = run(path, [*prompts(2), {"id": "bad", "prompt": [10**9]}], overwrite=True)
    assert len(report.failures) == 1
    assert tree_hash(path) == before
    assert f"{path} is as it was, since 1 of 3 prompts are not complete" in caplog.text


def test_a_stranger_at_the_name_of_the_new_store_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    Sample().write(path)
    Sample(seed=3).write(tmp_path / "run.new.zarr")
    before = tree_hash(tmp_path / "run.new.zarr")
    with pytest.raises(InputError, match=r"run.new.zarr is in the way"):
        StoreWriter.create(path, overwrite=True)
    assert tree_hash(tmp_path / "run.new.zarr") == before
