"""Commands that are killed with SIGKILL at many moments, in copies of a process that has everything imported.

A command is run once to the end, to see what it does and how long it takes, then again and again, each time in a folder
of its own, and killed: at a random moment, or before a random change that it makes to the file system.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attnlens.capture import capture
from attnlens.capture.relens import RelensOptions, relens
from attnlens.progress import Silent
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.render.viewer.single import export_html
from attnlens.schemas.errors import InputError
from attnlens.store.tools.crop import crop
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.hdf5_import import import_hdf5
from attnlens.store.tools.inif import export_inif
from attnlens.store.tools.merge import merge
from attnlens.store.tools.npz import export_npz
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.tools.parquet import export_parquet
from attnlens.store.tools.safetensors import export_safetensors
from batch_runs import OPTIONS, model, prompts, run
from families import byte_tokenizer
from killing_steps import killed, unkilled
from test_capture_evidence import write_tuned
from test_relens import write_store
from tiny import write_hf

N_PROMPTS = 4
Command = Callable[[Path, Path], object]
"""Of the folder with sources, which must stay as they are, and the folder in which the command may write."""


def one(path: Path, **options: Any) -> None:
    capture(model(), byte_tokenizer(), "The quick brown", path, **{**OPTIONS, **options})


def reread(folder: Path, store: Path) -> None:
    lens = f"tuned:{folder / 'lens'}"
    relens(RelensOptions(store=store, model=str(folder / "model"), lenses=(lens,)), Silent())


def draw(folder: Path, out: Path, **options: Any) -> None:
    render(folder / "run.zarr", out / "pictures", options=RenderOptions(capture="0000"), n_workers=1, **options)


def append_again(path: Path) -> None:
    try:
        run(path, prompts(N_PROMPTS), resume=True)
    except InputError:  # killed before anything was planned
        run(path, prompts(N_PROMPTS), append=True)


COMMANDS: dict[str, Command] = {
    "capture": lambda _, out: one(out / "new.zarr"),
    "capture --overwrite": lambda _, out: one(out / "old.zarr", overwrite=True),
    "capture --append": lambda _, out: one(out / "old.zarr", append=True),
    "capture --prompts": lambda _, out: run(out / "new.zarr", prompts(N_PROMPTS)),
    "capture --prompts --overwrite": lambda _, out: run(out / "old.zarr", prompts(N_PROMPTS), overwrite=True),
    "capture --prompts --append": lambda _, out: run(out / "old.zarr", prompts(N_PROMPTS), append=True),
    "relens": lambda folder, out: reread(folder, out / "old.zarr"),
    "crop": lambda folder, out: crop(folder / "run.zarr", out / "new.zarr"),
    "crop --overwrite": lambda folder, out: crop(folder / "run.zarr", out / "old.zarr", overwrite=True),
    "merge": lambda folder, out: merge([folder / "run.zarr"] * 2, out / "new.zarr"),
    "merge --overwrite": lambda folder, out: merge([folder / "run.zarr"] * 2, out / "old.zarr", overwrite=True),
    "pack": lambda folder, out: pack(folder / "run.zarr", out / "new.zarr.zip"),
    "pack --overwrite": lambda folder, out: pack(folder / "run.zarr", out / "old.zarr.zip", overwrite=True),
    "unpack": lambda folder, out: unpack(folder / "run.zarr.zip", out / "new.zarr"),
    "unpack --overwrite": lambda folder, out: unpack(folder / "run.zarr.zip", out / "old.zarr", overwrite=True),
    "import": lambda folder, out: import_hdf5(folder / "run.h5", out / "new.zarr"),
    "import --overwrite": lambda folder, out: import_hdf5(folder / "run.h5", out / "old.zarr", overwrite=True),
    "export to HDF5": lambda folder, out: export_hdf5(folder / "run.zarr", out / "new.h5"),
    "export to npz": lambda folder, out: export_npz(folder / "run.zarr", out / "new.npz"),
    "export to safetensors": lambda folder, out: export_safetensors(folder / "run.zarr", out / "new.safetensors"),
    "export to parquet": lambda folder, out: export_parquet(folder / "run.zarr", out / "new.parquet"),
    "export to INIF": lambda folder, out: export_inif(folder / "run.zarr", out / "new.json"),
    "export to HTML": lambda folder, out: export_html(folder / "run.zarr", out / "new.html"),
    "render": draw,
}
AGAIN: dict[str, Command] = {
    "capture": lambda _, out: one(out / "new.zarr", overwrite=True),
    "capture --overwrite": lambda _, out: one(out / "old.zarr", overwrite=True, resume=True),
    "capture --prompts": lambda _, out: run(out / "new.zarr", prompts(N_PROMPTS), resume=True),
    "capture --prompts --overwrite": lambda _, out: run(
        out / "old.zarr", prompts(N_PROMPTS), overwrite=True, resume=True
    ),
    "capture --prompts --append": lambda _, out: append_again(out / "old.zarr"),
    "render": lambda folder, out: draw(folder, out, resume=True),
}
"""What goes on where one was killed; the same command where none is named."""


def write_sources(folder: Path) -> None:
    """A model, a tuned lens, a store of two captures, the same in the forms that commands read, and an old store."""
    write_hf(folder / "model")
    write_tuned(folder / "lens", 3, 32)
    write_store(folder / "run.zarr", folder)
    pack(folder / "run.zarr", folder / "run.zarr.zip")
    export_hdf5(folder / "run.zarr", folder / "run.h5")


def begin(folder: Path, out: Path, name: str) -> None:
    """The folder in which a command writes: with an old store, or an old zip, if it says that it takes one."""
    out.mkdir()
    if name == "pack --overwrite":
        shutil.copy(folder / "run.zarr.zip", out / "old.zarr.zip")
    elif "--overwrite" in name or "--append" in name or name == "relens":
        shutil.copytree(folder / "run.zarr", out / "old.zarr")


class Killer:
    """A process that kills commands, in forks of itself."""

    def __init__(self, folder: Path) -> None:
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import killing; killing.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def kill(self, outs: Path, name: str, count: int, seed: int) -> list[tuple[Path, str, bool]]:
        """Kill a command `count` times, in folders below `outs`. Each with how, and whether it did not end before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(self._folder), str(outs), name, count, seed]) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("[["):
            assert line, "the process that kills has ended"
        return [(outs / number, how, hit) for number, how, hit in json.loads(line)]

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """What a Killer starts."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        folder, outs, name, count, seed = json.loads(line)
        print(json.dumps(_kill(Path(folder), Path(outs), name, count, random.Random(seed))), flush=True)


def _kill(folder: Path, outs: Path, name: str, count: int, chance: random.Random) -> list[tuple[str, str, bool]]:
    trial = outs / "trial"
    begin(folder, trial, name)
    steps, seconds = unkilled(lambda: COMMANDS[name](folder, trial), trial)
    shutil.rmtree(trial)
    moves = sorted({at + by for at, moves in enumerate(steps) if moves for by in (0, 1)} & set(range(len(steps))))
    done = []
    for number in range(count):
        kind, out = ("move", "time", "step")[number % 3], outs / f"{number}"
        step = {"move": chance.choice(moves), "step": chance.randrange(len(steps)), "time": None}[kind]
        after = chance.random() * 0.9 * seconds  # the first run was the slowest
        begin(folder, out, name)
        hit = killed(lambda out=out: COMMANDS[name](folder, out), out, step, after)  # type: ignore[misc]
        done.append((out.name, f"after {after:.3f} of {seconds:.3f} s" if step is None else f"at {kind} {step}", hit))
    return done
