"""`lens verify` finds values that no writer can have meant, though every byte is as the manifest says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from attnlens.store.spelling import spelled
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.seal import seal
from attnlens.store.verify import verify
from store_sample import Sample
from test_store_evidence import Half, Rich
from test_store_qk import Vectors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Stores of every array, of bfloat16, of queries and keys."""
    path = tmp_path_factory.mktemp("made")
    Rich(n_prompt=9, n_generated=4).write(path / "rich")
    Half(n_prompt=9, n_generated=4).write(path / "half")
    Vectors(kinds=("full", "sliding", "none"), n_prompt=9, n_generated=4).write(path / "qk")
    Sample(n_prompt=9, n_generated=4).write(path / "plain")
    for store in path.iterdir():
        assert verify(store).problems == []
    return {store.name: store for store in path.iterdir()}


def changed(store: Path, copy: Path, change: Callable[[zarr.Group], None]) -> list[tuple[str, str]]:
    """What verify says of a copy in which something was changed, its manifest made anew: (where, message)."""
    shutil.copytree(store, copy)
    change(zarr.open_group(copy / "0000", mode="r+", use_consolidated=False))
    seal(copy, "0000")
    return [(problem.where, problem.message) for problem in verify(copy).problems]


def put(name: str, cell: tuple[int, ...], value: float) -> Callable[[zarr.Group], None]:
    def change(group: zarr.Group) -> None:
        array: Any = group[name]
        array[cell] = value

    return change


NUMBERS = [
    ("rich", "residual", (2, 5, 3), np.nan, "depth 2, token 5, feature 3: is no number"),
    ("rich", "residual", (0, 1, 0), -np.inf, "depth 0, token 1, feature 0: is infinite"),
    ("half", "residual", (2, 5, 3), 0x7F80, "depth 2, token 5, feature 3: is no number"),
    ("half", "residual", (2, 5, 3), 0x7F00, "depth 2, token 5, feature 3: is infinite"),
    ("rich", "value_norm", (1, 0, 4), np.inf, "layer 1, head 0, key 4: is infinite"),
    ("rich", "model_probability", (4,), np.inf, "token 4: is infinite"),
    ("rich", "model_probability", (4,), 1.5, "token 4: outside 0 … 1"),
    ("qk", "attention_mean", (2, 1, 3), np.inf, "generated 2, layer 1, key 3: is infinite"),
]


@pytest.mark.parametrize(("store", "name", "cell", "value", "words"), NUMBERS)
def test_numbers_that_are_none_are_found(
    store: str, name: str, cell: tuple[int, ...], value: float, words: str, made: Mapping[str, Path], tmp_path: Path
) -> None:
    found = changed(made[store], tmp_path / "run.zarr", put(name, cell, value))
    assert [where.startswith(f"0000/{name}") for where, message in found if message == words] == [True]


CUTS = [Keep(tokens="3:7"), Keep(layers="1"), Keep(heads="1"), Keep(lite=True), Keep(arrays=("-attention_weight",))]


@pytest.mark.parametrize(
    ("store", "keep"), [*(("rich", keep) for keep in CUTS), ("half", CUTS[0]), ("qk", CUTS[0]), ("qk", CUTS[1])]
)
def test_what_a_crop_took_away_is_no_fault(store: str, keep: Keep, made: Mapping[str, Path], tmp_path: Path) -> None:
    part = crop(made[store], tmp_path / "part.zarr", keep=keep).path
    assert verify(part).problems == []
    assert verify(crop(part, tmp_path / "again.zarr", redact=["tokens:5"]).path).problems == []


CROPPED = [
    ("attention_max", (2, 1, 3), 1.5, "generated 2, layer 1, key 3: outside 0 … 1"),
    ("attention_max", (0, 1, 3), np.nan, "generated 0, layer 1, key 3: is no number"),
    ("lens_probability", (1, 4, 0), np.nan, "depth 1, token 4, rank 0: is no number"),
    ("residual", (1, 4, 0), np.nan, "depth 1, token 4, feature 0: is no number"),
    ("value_norm", (1, 1, 4), np.nan, "layer 1, head 1, key 4: is no number"),
]


@pytest.mark.parametrize(("name", "cell", "value", "words"), CROPPED)
def test_a_crop_has_numbers_in_what_it_kept(
    name: str, cell: tuple[int, ...], value: float, words: str, made: Mapping[str, Path], tmp_path: Path
) -> None:
    keep = Keep(layers="1", arrays=("-attention_weight",))
    part = crop(made["rich"], tmp_path / "part.zarr", keep=keep).path
    found = changed(part, tmp_path / "run.zarr", put(name, cell, value))
    assert words in [message for where, message in found if where.startswith(f"0000/{name}")]


def text(name: str, entry: int, value: str) -> Callable[[zarr.Group], None]:
    def change(group: zarr.Group) -> None:
        array: Any = group[name]
        values = array[:]
        values[entry] = value
        array[:] = values

    return change


def test_a_text_that_the_bytes_do_not_spell_is_found(made: Mapping[str, Path], tmp_path: Path) -> None:
    found = changed(made["plain"], tmp_path / "run.zarr", text("token_text", 3, "other"))
    assert (
        "0000/token_text",
        f"token 3 (id {Sample(n_prompt=9).ids[3]}) is 'other': its bytes say something else",
    ) in found
    found = changed(made["plain"], tmp_path / "bytes.zarr", put("token_bytes", (0,), 0xE2))
    assert [where for where, _ in found] == ["0000/token_text"]


def test_an_id_with_two_texts_or_two_spellings_is_found(tmp_path: Path) -> None:
    def written(name: str, change: Callable[[Sample], None]) -> list[tuple[str, str]]:
        sample = Sample(n_prompt=6)
        sample.ids[:] = [7, 1, 7, 2, 3, 4, 5, 6, 8, 9][: len(sample.ids)]
        sample.lens_arrays["next_probability"][:] = np.nan
        sample.texts = [sample.words[number] for number in sample.ids]
        sample.raw = [word.encode() for word in sample.texts]
        change(sample)
        sample.write(tmp_path / name)
        return [
            (problem.where, problem.message)
            for problem in verify(tmp_path / name).problems
            if "text" in problem.where or "vocabulary" in problem.where
        ]

    def twice(sample: Sample) -> None:
        sample.texts[2], sample.raw[2] = "other", b"other"

    def odd(sample: Sample) -> None:
        sample.texts[2], sample.raw[2] = "<E2>", b"\xe2"
        sample.texts[0], sample.raw[0] = "<E2>", b"<E2>"
        sample.words[7] = "<E2>"

    def listed(sample: Sample) -> None:
        sample.words[7] = "other"

    def silent(sample: Sample) -> None:
        sample.ids[5] = -1

    assert written("whole", lambda _: None) == []
    assert written("two", twice) == [
        ("0000/token_text", "token 2 (id 7) is 'other': the same id has another text elsewhere"),
        ("0000/token_text", "token 2 (id 7) is 'other': the same id has other bytes elsewhere"),
    ]
    assert written("bytes", odd) == [
        ("0000/token_text", "token 2 (id 7) is '<E2>': the same id has other bytes elsewhere")
    ]
    assert written("listed", listed) == [
        ("0000/vocabulary_text", "entry 7 (id 7) is 'other', token 0 'v7': the same id has another text elsewhere")
    ]
    assert written("silent", silent)[0][1].startswith("token 5 (id -1) is ")


def test_entries_of_the_vocabulary_are_in_it(made: Mapping[str, Path], tmp_path: Path) -> None:
    found = changed(made["plain"], tmp_path / "run.zarr", put("vocabulary_id", (49,), 50))
    assert ("0000/vocabulary_id", "entry 49 is 50: outside -1 … 49") in found


def test_bytes_are_spelled_as_the_format_says() -> None:
    assert spelled("a€".encode()) == "a€"
    assert spelled(b"\xe2\x82") == "<E2><82>"
    assert spelled(b"a\xff\xf0\x9f\x99\x82") == "a<FF>🙂"
