"""`accelerate launch`, as a person types it: its processes share the prompts, and one that is alone says so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnlens.capture.batch.launch import one_of_several
from attnlens.cli import app
from attnlens.store.verify import verify
from batch_runs import assert_same
from tiny import write_hf

COUNT = 6


@pytest.mark.nightly
def test_processes_of_accelerate_share_the_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_hf(Path("model"))
    Path("prompts.txt").write_text("".join(f"{number} quick brown foxes\n" for number in range(COUNT)))
    options = ["-m", "model", "--prompts", "prompts.txt", "--raw", "--temperature", "1", "--max-new-tokens", "30"]
    alone = CliRunner().invoke(app, ["capture", *options, "-o", "alone.zarr"])
    assert alone.exit_code == 0, alone.output
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    Path("two.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nmixed_precision: 'no'\n"
        f"num_machines: 1\nnum_processes: 2\nmain_process_port: {port}\nuse_cpu: false\n"
    )
    launcher = str(Path(sys.executable).with_name("accelerate"))
    command = [launcher, "launch", "--config_file", "two.yaml", "-m", "attnlens", "capture", *options, "-o", "two.zarr"]
    # One thread, as here and as the launchers give by themselves: more of them add in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    counts = [int(line.split("captured ")[1].split()[0]) for line in done.stdout.splitlines() if "captured " in line]
    assert len(counts) == 2
    assert sum(counts) == COUNT
    assert_same(tmp_path / "two.zarr", tmp_path / "alone.zarr")
    assert not verify(tmp_path / "two.zarr").problems


def test_one_process_where_several_were_asked_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert one_of_several(started)  # what accelerate 1.15 sets with --cpu --num_processes 2
    assert not one_of_several({**started, "WORLD_SIZE": "2"})
    assert not one_of_several({"ACCELERATE_USE_CPU": "True"})
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["capture", "-m", "nowhere", "--prompts", str(tmp_path / "none.txt")])
    assert "accelerate launch --cpu has started one process" in done.stderr
