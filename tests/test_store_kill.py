"""A writer that is killed, and a disk that is full, in real processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import attnlens
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample, tree_hash

ENDLESS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from store_sample import Sample
from attnlens.store.writer import StoreWriter
sample = Sample(n_prompt=24, n_generated=400, n_layer=2)
writer = StoreWriter.create(sys.argv[1], append=True)
sample.name = writer.new_id()
with writer.capture(sample.metadata(), capacity=424, key_rows_hold=int(sys.argv[3])) as out:
    sample.prompt(out)
    for row in range(24, 424):
        sample.step(out, row)
        print(row + 1, flush=True)
        time.sleep(0.002)
"""

LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from store_sample import Sample
from attnlens.schemas.errors import StoreError
from attnlens.store.writer import StoreWriter
sample = Sample(n_prompt=24, n_generated=400, n_layer=8, n_head=4)
writer = StoreWriter.create(sys.argv[1])
try:
    with writer.capture(sample.metadata(), capacity=424) as out:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
        sample.prompt(out)
        for row in range(24, 424):
            sample.step(out, row)
        out.finish({})
except StoreError as error:
    print(error)
    sys.exit(7)
"""


def check_rows(path: Path, name: str, sample: Sample) -> int:
    capture = attnlens.open(path)[name]
    assert capture.status == "partial"
    committed = capture.committed
    rows = capture.attention.rows(range(committed))
    np.testing.assert_array_equal(rows, sample.weights[:, :, :committed, : capture.n_token].astype(np.float32))
    for key, values in sample.lens_arrays.items():
        np.testing.assert_array_equal(capture[key][:, :committed], values[:, :committed], err_msg=key)
    assert capture.token_text == sample.texts[: capture.n_token]
    assert [capture.token_bytes(t) for t in range(capture.n_token)] == sample.raw[: capture.n_token]
    assert set(np.unique(capture["lens_token"][:, :committed])) <= set(capture.vocabulary)
    return committed


@pytest.mark.parametrize("hold", [1 << 26, 0], ids=["rows", "layers"])
def test_a_killed_writer_leaves_a_store_that_opens(tmp_path: Path, hold: int) -> None:
    path = tmp_path / "run.zarr"
    Sample().write(path)
    beside = tree_hash(path / "0000")
    sample = Sample(n_prompt=24, n_generated=400, n_layer=2)
    command = [sys.executable, "-c", ENDLESS, str(path), str(Path(__file__).parent), str(hold)]
    chance = random.Random(hold)
    for name in ("0001", "0002", "0003"):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            stop_at = chance.randrange(60, 250)
            handed = 0
            for line in process.stdout:
                handed = int(line)
                if handed >= stop_at and (attnlens.open(path)[name].committed or handed > 400):
                    break
            time.sleep(chance.random() / 100)
            live = attnlens.open(path)[name].committed  # a reader beside a living writer
            os.kill(process.pid, signal.SIGKILL)
        assert check_rows(path, name, sample) >= max(24, live)
        assert tree_hash(path / "0000") == beside
    report = verify(path)
    assert [problem for problem in report.problems if problem.where.startswith("000")] == []
    assert report.captures == {"0000": "complete", "0001": "partial", "0002": "partial", "0003": "partial"}
    Sample(seed=3).write(StoreWriter.create(path, append=True))
    assert attnlens.open(path)["0004"].status == "complete"


def test_a_full_disk_keeps_the_committed_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    command = [sys.executable, "-c", LIMITED, str(path), str(Path(__file__).parent), "200000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    sample = Sample(n_prompt=24, n_generated=400, n_layer=8, n_head=4)
    committed = check_rows(path, "0000", sample)
    assert 24 <= committed < 424
    assert f"disk full while writing {path}: {committed} rows are kept" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "disk full" in (attnlens.open(path)[0].metadata.error or "")
    assert not list(path.rglob("*.partial"))
    assert verify(path).problems == []


def test_the_tail_is_committed_in_time(tmp_path: Path) -> None:
    sample = Sample(n_prompt=3, n_generated=3)
    with StoreWriter.create(tmp_path / "run.zarr").capture(sample.metadata(), capacity=9) as out:
        sample.prompt(out)
        deadline = time.monotonic() + 30
        while out.committed < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert attnlens.open(tmp_path / "run.zarr")[0].committed == 3
        out.fail("enough")
