"""A capture that is killed: what was committed is exact, and nothing else is harmed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.capture import capture
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import AttnlensError
from attnlens.store.verify import verify
from families import byte_tokenizer, tiny_model
from forks import Forked

KILLS = int(os.environ.get("ATTNLENS_KILLS", "2"))
"""How often to kill; 20 of them is the acceptance run."""
N_NEW = 110
PROMPT = "The quick brown"
OPTIONS: dict[str, Any] = {"raw": True, "temperature": 0, "max_new_tokens": N_NEW}

CHILD = f"""
import sys, time
from attnlens.capture import capture
from families import byte_tokenizer, tiny_model
from forks import Forked

class Steps:
    def stage(self, name, total=None, unit=""):
        self.name = name
    def advance(self, amount=1, note=""):
        if self.name == "decode":
            print(time.time(), flush=True)
            time.sleep(0.04)
    def end(self):
        pass

model = tiny_model("llama")
model.generation_config.eos_token_id = None
capture(model, byte_tokenizer(), {PROMPT!r}, sys.argv[1], append=True, progress=Steps(), **{OPTIONS!r})
"""


def committed_rows(path: Path, name: str) -> int:
    try:
        return attnlens.open(path)[name].committed
    except AttnlensError:
        return 0


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same capture, not killed."""
    path = tmp_path_factory.mktemp("truth") / "run.zarr"
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    capture(model, byte_tokenizer(), PROMPT, path, **OPTIONS)
    return path


def test_sigkill_after_the_first_commit(tmp_path: Path, truth: Path) -> None:
    path = tmp_path / "run.zarr"
    model = tiny_model("llama")
    capture(model, byte_tokenizer(), PROMPT, path, **{**OPTIONS, "max_new_tokens": 4})
    beside = files_of(path / "0000")
    whole: Any = zarr.open_group(truth, mode="r")["0000"]
    chance = random.Random(7)
    for kill in range(1, KILLS + 1):
        name = f"{kill:04d}"
        with Forked(CHILD, path) as child:
            while committed_rows(path, name) == 0:
                assert child.poll() is None
                time.sleep(0.01)
            time.sleep(chance.random() * 1.5)
            killed = time.time()
            child.send_signal(signal.SIGKILL)
            steps = [float(line) for line in child.stdout.read().splitlines()]
        assert child.returncode == -signal.SIGKILL
        found = attnlens.open(path)[name]
        assert found.status == "partial"
        n_prompt = found.n_prompt
        # After step i the rows 0 … n_prompt - 1 + i were handed over.
        due = sum(step < killed - 2 for step in steps)
        handed = n_prompt + len(steps) - 1
        assert found.committed >= handed - 8 or found.committed >= n_prompt - 1 + due
        assert found.committed <= handed + 1
        rows = found.attention.rows(range(found.committed))
        expected = whole["attention_weight"][:, :, : found.committed, : found.n_token].astype(np.float32)
        np.testing.assert_array_equal(rows, expected)
        for array in ("lens_token", "lens_probability", "lens_entropy", "next_rank", "next_probability"):
            np.testing.assert_array_equal(found[array][:, : found.committed], whole[array][:, : found.committed])
        np.testing.assert_array_equal(found.token_id, whole["token_id"][: found.n_token])
        report = render(path, tmp_path / name, options=RenderOptions(capture=name, queries=f"{found.committed - 1}"))
        assert report.count > 0
    assert files_of(path / "0000") == beside
    assert not verify(path).problems


def test_sigkill_before_the_first_commit_leaves_no_store_or_a_planned_one(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    chance = random.Random(3)
    for _ in range(2):
        with Forked(CHILD, path) as child:
            deadline = time.time() + chance.random() * 2 + 2
            while time.time() < deadline and not path.exists():
                time.sleep(0.001)
            child.send_signal(signal.SIGKILL)
        if (path / "zarr.json").exists():
            for found in attnlens.open(path):
                assert found.status in ("planned", "partial")
                assert found.status == "partial" or found.committed == 0
        elif path.exists():  # killed before it was a store: nothing is there but what was being written
            assert all(file.name.endswith(".partial") for file in path.iterdir())
            shutil.rmtree(path)
