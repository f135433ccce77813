"""Every command that writes, killed: what there was stays whole, the same command goes on, and nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import attnlens
from attnlens.schemas.errors import InputError
from attnlens.store.replacement import MARK
from attnlens.store.verify import verify
from batch_runs import arrays
from killing import AGAIN, COMMANDS, Killer, begin, write_sources
from store_sample import tree_hash

KILLS = int(os.environ.get("ATTNLENS_KILLS", "2"))
"""How often each command is killed; 25 is the acceptance run."""
ALWAYS = {"capture --append", "crop --overwrite", "import", "pack"}
"""Killed in each run of the suite. The others write by the same functions, or are killed in test_capture_kill,
test_capture_replace, test_batch_kill and test_relens_kill as well."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources")
    write_sources(path)
    return path


@pytest.fixture(scope="module")
def killer(folder: Path) -> Iterator[Killer]:
    killer = Killer(folder)
    yield killer
    killer.close()


def assert_equal(found: Path, expected: Path) -> None:
    """Two stores hold the same arrays, as zarr alone reads them; two files of another kind the same bytes."""
    if found.suffix == ".h5":
        return assert_equal_hdf5(found, expected)
    if not found.is_dir():
        assert found.read_bytes() == expected.read_bytes()
        return None
    if found.suffix != ".zarr":
        assert tree_hash(found) == tree_hash(expected)
        return None
    assert attnlens.open(found).ids == attnlens.open(expected).ids
    for name in attnlens.open(expected).ids:
        here, there = arrays(found, name), arrays(expected, name)
        assert here.keys() == there.keys()
        for key, values in there.items():
            np.testing.assert_array_equal(here[key], values, err_msg=f"{name}/{key}")
    assert not verify(found).problems
    assert [entry.status for entry in attnlens.open(found).metadata.index or []] == ["complete"] * len(
        attnlens.open(found).ids
    )
    return None


def assert_equal_hdf5(found: Path, expected: Path) -> None:
    import h5py

    with h5py.File(found) as here, h5py.File(expected) as there:
        names: list[str] = []
        there.visit(names.append)
        seen: list[str] = []
        here.visit(seen.append)
        assert seen == names
        for name in names:
            if isinstance(there[name], h5py.Dataset):
                np.testing.assert_array_equal(here[name][()], there[name][()], err_msg=name)


def whole_captures(store: Path) -> dict[str, str]:
    """Finished captures of a store, and a hash of all that is in each."""
    if not store.exists() or not (store / "zarr.json").exists():
        return {}
    return {found.id: tree_hash(store / found.id) for found in attnlens.open(store) if found.status == "complete"}


def is_equal(found: Path, expected: Path) -> bool:
    try:
        assert_equal(found, expected)
    except AssertionError:
        return False
    return True


def assert_nothing_lost(name: str, found: Path, old: Path, new: Path) -> None:
    """What was there when a command was killed is there still, or what was to replace it is."""
    if "--append" in name:
        assert whole_captures(found).items() >= whole_captures(old).items()
    elif name == "relens":
        for capture in attnlens.open(old).ids:
            here = arrays(found, capture)
            there = arrays(old if here.keys() == arrays(old, capture).keys() else new, capture)
            assert here.keys() == there.keys()
            for key, values in there.items():
                np.testing.assert_array_equal(here[key], values)
        assert not verify(found).problems
    else:
        assert is_equal(found, old) or is_equal(found, new)


def go_on(name: str, folder: Path, out: Path) -> None:
    """The same command again, or what goes on with it; it may have ended before it was killed."""
    try:
        AGAIN.get(name, COMMANDS[name])(folder, out)
    except InputError as error:
        if "exists" not in str(error) and "is there already" not in str(error):
            raise


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.nightly) for name in COMMANDS]
)
def test_a_command_that_is_killed(
    name: str, folder: Path, killer: Killer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth, outs = tmp_path / "truth", tmp_path / "outs"
    begin(folder, truth, name)
    had = {path.name for path in truth.iterdir()}
    COMMANDS[name](folder, truth)
    (place,) = truth.iterdir()
    before = tree_hash(folder)
    outs.mkdir()
    kills, left_some = killer.kill(outs, name, KILLS, seed=7), 0
    for out, how, hit in kills:
        caplog.clear()
        left = [path.name for path in out.iterdir() if path.name.startswith(".")]
        left_some += bool(left)
        print(name, how, "killed" if hit else "ended before", *left)
        assert tree_hash(folder) == before
        if had:
            assert_nothing_lost(name, out / place.name, folder / place.name.replace("old", "run"), place)
        beside = out / f"{place.stem}.new{place.suffix}"
        running = beside if (beside / MARK).exists() else out / place.name
        kept = whole_captures(running) if name == "capture --prompts" or running == beside else {}
        go_on(name, folder, out)
        for entry in left:  # that is hidden, so it is named where it is removed
            assert entry in caplog.text
        assert {path.name for path in out.iterdir()} == {place.name}
        assert not [path for path in out.rglob("*") if path.name.endswith(".partial")]
        assert whole_captures(out / place.name).items() >= kept.items()
        if name == "capture --append":  # what was killed stays as a partial capture
            last = attnlens.open(out / place.name).ids[-1]
            for key, values in arrays(place, "0002").items():
                np.testing.assert_array_equal(arrays(out / place.name, last)[key], values, err_msg=key)
        else:
            assert_equal(out / place.name, place)
    assert sum(hit for _, _, hit in kills) >= len(kills) / 2
    print(f"{name}: {sum(hit for _, _, hit in kills)} of {len(kills)} killed, {left_some} left something hidden")
