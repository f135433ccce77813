"""`lens relens` killed, wherever it is: the store is the old one or the new one, and the same command goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.capture.relens import RelensOptions, relens
from attnlens.progress import Silent
from attnlens.schemas.errors import InputError
from attnlens.store.tools.pack import pack
from attnlens.store.verify import verify
from forks import Forked
from test_capture_evidence import write_tuned
from test_relens import write_store
from tiny import write_hf

KILLS = int(os.environ.get("ATTNLENS_KILLS", "1"))
"""At how many of the steps to kill, of those about a capture that changes places; 1000 for every step there is."""

CHILD = """
import os, random, shutil, signal, sys
from pathlib import Path
from attnlens.capture.relens import RelensOptions, relens
from attnlens.progress import Silent
from attnlens.store import exchange

folder, kept, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def run(store, step, told):
    steps = []
    def watch(event, args):
        # Before whatever changes the store's folder: links, renames, files that are opened to be written, and so on.
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove")) and store in str(args[0]):
            if len(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            # What changes the store itself, and not a folder that readers ignore.
            steps.append(event == "os.rename" and str(Path(args[1])).count("/") - store.count("/") < 3)
    sys.addaudithook(watch)
    relens(RelensOptions(store=Path(store), model=str(folder / "model"), lenses=(f"tuned:{folder}/lens",)), Silent())
    os.write(told, bytes(steps))

def killed(mode, step):
    store = kept / f"{mode}{step}.zarr"
    shutil.copytree(folder / "old.zarr", store)
    back, told = os.pipe()
    if not (child := os.fork()):
        try:
            run(str(store), step, told)
        finally:
            os._exit(1)
    os.close(told)
    steps = os.read(back, 1 << 16)
    # A slow run commits more often, so a later one may end before it comes to that step.
    ended = os.waitpid(child, 0)[1]
    assert ended == 256 or (step >= 0 and ended == signal.SIGKILL)
    hits.append(ended == signal.SIGKILL)
    return steps

chance = random.Random(5)
hits = []
for mode in ("exchange", "steps"):
    if mode == "steps":
        exchange._exchange = lambda *_: False
    steps = killed(mode, -1)
    near = {at + after for at, moves in enumerate(steps) if moves for after in (0, 1)} & set(range(len(steps)))
    near = range(len(steps)) if count > len(steps) else chance.sample(sorted(near), min(count, len(near)))
    for step in near:
        killed(mode, step)
    print(mode, len(steps), len(near))
assert any(hits)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a tuned lens, a store of two captures without it, and the same with it."""
    path = tmp_path_factory.mktemp("relens")
    write_hf(path / "model")
    write_tuned(path / "lens", 3, 32)
    write_store(path / "old.zarr", path)
    shutil.copytree(path / "old.zarr", path / "new.zarr")
    again(path, path / "new.zarr")
    return path


def again(folder: Path, store: Path) -> dict[str, list[str]]:
    """The same command, not killed; what it added."""
    lens = f"tuned:{folder / 'lens'}"
    return relens(RelensOptions(store=store, model=str(folder / "model"), lenses=(lens,)), Silent()).added


def arrays(store: Path, name: str) -> dict[str, Any]:
    """Every array of a capture, read by zarr alone."""
    group: Any = zarr.open_group(store, mode="r")[name]
    return {key: array[:] for key, array in group.arrays()}


def is_the_same(store: Path, expected: Path, name: str) -> bool:
    found, there = arrays(store, name), arrays(expected, name)
    if found.keys() != there.keys():
        return False
    for key, values in found.items():
        np.testing.assert_array_equal(values, there[key], err_msg=f"{name}/{key}")
    return True


def test_a_killed_relens(folder: Path, tmp_path: Path) -> None:
    with Forked(CHILD, folder, tmp_path, KILLS) as done:
        said, errors = done.communicate(timeout=3600)
    assert done.returncode == 0, errors
    print(said)
    seen = set()
    for store in sorted(tmp_path.glob("*.zarr")):
        names = attnlens.open(store).ids
        state = tuple(is_the_same(store, folder / "new.zarr", name) for name in names)
        for name in names:
            assert is_the_same(store, folder / "new.zarr", name) or is_the_same(store, folder / "old.zarr", name)
        if store.name.startswith("exchange"):  # in two steps a capture is gone for a moment
            assert names == ["0000", "0001"]
            assert verify(store).problems == [], store
            assert verify(pack(store, store.with_suffix(".zarr.zip")).path).problems == [], store
            seen.add(state)
        if state == (True, True):
            with pytest.raises(InputError, match="it is there already"):
                again(folder, store)
        else:
            again(folder, store)
        assert all(is_the_same(store, folder / "new.zarr", name) for name in ("0000", "0001")), store
        assert verify(store).problems == [], store
        assert {path.name for path in store.iterdir()} == {"zarr.json", "0000", "0001"}
        assert [entry.id for entry in attnlens.open(store).metadata.index or []] == ["0000", "0001"]
    assert not list(tmp_path.glob(".*"))
    if KILLS == 1000:
        assert seen == {(False, False), (True, False), (True, True)}
