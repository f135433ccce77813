"""Damage at random: verify finds it and says where, and nothing that is drawn from such a store is wrong in silence."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest

import attnlens
from attnlens.render.pictures import render
from attnlens.schemas.errors import AttnlensError
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample, plain_zip

KINDS = ("flip", "cut", "delete", "swap")
N_TRIAL = int(os.environ.get("ATTNLENS_TRIALS", "32"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    writer = StoreWriter.create(path)
    Sample(n_prompt=70, n_generated=3, n_layer=2).write(writer)
    Sample(n_prompt=66, n_generated=3, n_layer=2, seed=1).write(writer)
    return path


def pictures(store: Path, folder: Path) -> dict[str, bytes]:
    render(store, folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def drawn(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return pictures(whole, tmp_path_factory.mktemp("drawn"))


def damage(files: dict[str, bytes], kind: str, chance: random.Random) -> set[str]:
    """Damage one file, or swap two, in place; returns the names of those that were touched."""
    name = chance.choice(sorted(name for name, data in files.items() if data))
    data = files[name]
    if kind == "flip":
        at = chance.randrange(len(data))
        files[name] = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    elif kind == "cut":
        files[name] = data[: chance.randrange(len(data))]
    elif kind == "delete":
        del files[name]
    else:
        other = chance.choice(sorted(other for other in files if files[other] != data))
        files[name], files[other] = files[other], data
        return {name, other}
    return {name}


def write(files: dict[str, bytes], path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def says_where(path: Path, touched: set[str]) -> bool:
    """Whether verify names a touched file, the group that it describes, or the store itself if that is what is gone."""
    try:
        report = verify(path)
    except AttnlensError as error:
        return "zarr.json" in touched and path.name in str(error)
    places = {problem.where for problem in report.problems}
    return any(
        name in places or name.removesuffix("/zarr.json").removesuffix("zarr.json") in places for name in touched
    )


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_named_and_never_drawn(
    whole: Path, drawn: dict[str, bytes], tmp_path: Path, kind: str, suffix: str
) -> None:
    chance = random.Random(f"{kind}{suffix}")
    intact = {file.relative_to(whole).as_posix(): file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    for trial in range(N_TRIAL // len(KINDS) // 2):
        files = dict(intact)
        touched = damage(files, kind, chance)
        path = tmp_path / f"{trial}{suffix}"
        write(files, path)
        assert says_where(path, touched), (kind, touched)
        never_wrong(path, tmp_path / f"{trial}", drawn, touched)


def never_wrong(path: Path, folder: Path, drawn: dict[str, bytes], touched: set[str]) -> None:
    """Each picture is the right one, or there is none and an error that says why."""
    try:
        found = pictures(path, folder)
    except AttnlensError as error:
        message = str(error)
        found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.png")}
    else:
        message = ""
        assert found.keys() == drawn.keys() or "zarr.json" in touched, touched
    assert "\n" not in message
    for name, data in found.items():
        right = {drawn.get(name), drawn.get(f"0000/{name}"), drawn.get(f"0001/{name}")}
        assert data in right, (name, touched)
    shutil.rmtree(folder, ignore_errors=True)


def test_files_of_one_array_that_changed_places_are_noticed(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run.zarr"))
    first, second = path / "0000/attention_weight/c/0/0/0/0", path / "0000/attention_weight/c/0/0/1/0"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(AttnlensError, match=r"attention_weight: chunk c/0/0/0/0 is damaged .its bytes are not those"):
        attnlens.open(path)[0].attention.rows(3)
    packed = plain_zip(path, tmp_path / "run.zarr.zip")
    with pytest.raises(AttnlensError, match="its bytes are not those"):
        attnlens.open(packed)[0].attention.rows(3)


def test_lists_that_changed_places_are_noticed(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run.zarr"))
    a, b = path / "0000/token_id/c/0", path / "0001/token_id/c/0"
    a.write_bytes(b.read_bytes())
    with pytest.raises(AttnlensError, match="token_id: chunk c/0 is damaged"):
        attnlens.open(path)[0].token_id  # noqa: B018
    a.unlink()
    with pytest.raises(AttnlensError, match=r"token_id: chunk c/0 is damaged .is missing"):
        attnlens.open(path)[0].token_id  # noqa: B018
