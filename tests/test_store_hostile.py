"""A store from a stranger: one test for each line of the threat model in docs/security.md."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.render.pictures import render
from attnlens.schemas.errors import AttnlensError, StoreError
from attnlens.store.descriptions import NO_LIMITS, Limits, default_limits
from attnlens.store.encode import checksum, encode_texts
from attnlens.store.frames import content_size
from attnlens.store.reader import open_store
from attnlens.store.tools.crop import crop
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.tools.seal import seal
from attnlens.store.verify import verify
from fuzz_store import fuzz
from store_sample import Sample


@pytest.fixture
def store(tmp_path: Path) -> Path:
    Sample(n_prompt=9, n_generated=4).write(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def array(store: Path, name: str, **changes: Any) -> None:
    """Change an array's metadata as an attacker would, in both places where they are."""
    change(store / "0000" / name / "zarr.json", lambda document: document.update(changes))
    seal(store, "0000")


def refuses(store: Path, words: str) -> None:
    """Everything that reads says it in one line."""
    with pytest.raises(AttnlensError, match=words) as caught:
        render(store, store.with_name("pictures"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not verify(store).passed


# Zip slip, links and pipes are in test_store_pack.py.


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("token_id", {"shape": [1 << 60]}, "axis longer than"),
        ("token_id", {"shape": [1 << 22]}, "has 4194304 entries, expected 13"),
        ("token_bytes", {"shape": [1 << 40]}, "axis longer than"),
        ("token_id", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 31]}}}, "one chunk"),
        ("token_id", {"codecs": [{"name": "numcodecs.pickle"}]}, "codec 'numcodecs.pickle' is unknown"),
        ("token_text", {"codecs": [{"name": "numcodecs.json2"}]}, "codec 'numcodecs.json2' is unknown"),
        ("token_id", {"codecs": [{"name": "gzip", "configuration": {"level": 1}}]}, "codec 'gzip' is unknown"),
        ("token_id", {"codecs": [{"name": "blosc"}]}, "codec 'blosc' is unknown"),
        ("token_id", {"data_type": "object"}, "dtype is object"),
        (
            "attention_max",
            {"attributes": {"attnlens": {"encoding": "cubes"}}},
            "encoding 'cubes' of float16 is unknown",
        ),
        ("token_bytes", {"attributes": {"attnlens": {"encoding": ["x" * 5000]}}}, "encoding .* of uint8 is unknown"),
        ("lens_entropy", {"attributes": {"attnlens": {"encoding": "sqrt254"}}}, "'sqrt254' of float32 is unknown"),
        ("token_id", {"data_type": "float64"}, "dtype is float64"),
        ("token_text", {"data_type": "int32"}, "dtype is int32"),
        ("attention_max", {"dimension_names": ["a", "b", "c"]}, "axes are"),
    ],
)
def test_absurd_shapes_codecs_and_types(store: Path, name: str, changes: dict[str, Any], words: str) -> None:
    array(store, name, **changes)
    refuses(store, words)


def test_absurd_numbers_of_chunks(store: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        sharding = document["codecs"][0]["configuration"]
        document["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 9, 1 << 9, 1 << 9]
        sharding["chunk_shape"] = [1, 1, 1]

    change(store / "0000/attention_max/zarr.json", edit)
    seal(store, "0000")
    refuses(store, "one shard holds 134217728 chunks")


def put(store: Path, name: str, data: bytes) -> None:
    next(file for file in (store / "0000" / name / "c").rglob("*") if file.is_file()).write_bytes(data)
    seal(store, "0000")


def bomb(size: int) -> bytes:
    """zstd frames of zeros: a header that says so, and blocks of one repeated byte of 128 KiB each."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + size.to_bytes(8, "little")
    block = 1 << 17
    count = size // block
    for number in range(count):
        frame += (block << 3 | 1 << 1 | (number == count - 1)).to_bytes(3, "little") + b"\0"
    return frame + checksum(frame)


def test_a_decompression_bomb_is_refused_before_it_goes_off(store: Path) -> None:
    data = bomb(1 << 33)
    assert len(data) < 300_000
    assert content_size(data) == 1 << 33
    put(store, "token_id", data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match=r"token_id: chunk c/0 is damaged .a zstd frame holds 8589934592 bytes"):
        attnlens.open(store)[0].token_id  # noqa: B018
    assert not verify(store).passed
    put(store, "token_text", data)
    with pytest.raises(StoreError, match=r"token_text: chunk c/0 is damaged .a zstd frame holds 8589934592 bytes"):
        attnlens.open(store)[0].token_text  # noqa: B018
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_list_that_claims_billions_of_strings(store: Path) -> None:
    from numcodecs.zstd import Zstd

    frame = bytes(Zstd(level=1).encode((0xFFFFFFFF).to_bytes(4, "little") + b"\0" * 60))
    put(store, "token_text", frame + checksum(frame))
    refuses(store, "says it holds 4294967295")


def test_a_frame_that_does_not_say_its_size(store: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + b"\x03\x00\x00\0"
    put(store, "token_id", frame + checksum(frame))
    refuses(store, "does not say how much it holds")


@pytest.mark.parametrize("value", [-0.5, 1.5, np.nan, np.inf])
def test_attention_that_is_none(store: Path, value: float) -> None:
    values: Any = zarr.open_array(store / "0000/attention_weight", mode="r+")
    values[0, 0, 3, 1] = value
    seal(store, "0000")
    assert any("weight outside 0 … 1" in str(problem) for problem in verify(store).problems)
    render(store, store.with_name("p"))


@pytest.mark.parametrize("number", [-2, 50, 1 << 30])
def test_ids_outside_the_vocabulary(store: Path, number: int) -> None:
    values: Any = zarr.open_array(store / "0000/lens_token", mode="r+")
    values[...] = number
    ids: Any = zarr.open_array(store / "0000/token_id", mode="r+")
    ids[2] = 99
    seal(store, "0000")
    found = [str(problem) for problem in verify(store).problems]
    assert any("id outside the vocabulary" in text for text in found)
    assert any("token 2 has id" in text for text in found)
    with pytest.raises(StoreError, match="vocabulary_id: the lens arrays use token id"):
        render(store, store.with_name("p"))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "null",
        "1e999",
        '{"attributes": {"attnlens": {"x": ' + "9" * 6000 + "}}}",
        "\ufeff{}",
        "",
    ],
)
@pytest.mark.parametrize("name", ["zarr.json", "0000/zarr.json"])
def test_deep_and_broken_metadata(store: Path, name: str, text: str) -> None:
    (store / name).write_text(text)
    with pytest.raises(StoreError) as caught:
        attnlens.open(store)[0]
    assert "\n" not in str(caught.value)


def test_what_fuzzing_found(store: Path, tmp_path: Path) -> None:
    """Attributes that are no object; a document of an array that only its group's copy made up for."""
    deep = store / "0000/key/zarr.json"
    text = deep.read_text()
    for damage in ("[" * 200_000, "{", ""):
        deep.write_text(damage)
        assert any(problem.where == "0000/key/zarr.json" for problem in verify(store).problems)
        with pytest.raises(AttnlensError):
            crop(store, tmp_path / "c.zarr")
    deep.write_text(text)
    array(store, "token_id", attributes=True)
    refuses(store, "its attributes are no JSON object")


@pytest.mark.parametrize("attributes", [{"attnlens": "planned"}, {"attnlens": [1]}, "attnlens", None, {}])
def test_verify_of_a_capture_that_says_nothing_of_itself(store: Path, attributes: Any) -> None:
    change(store / "0000" / "zarr.json", lambda document: document.update(attributes=attributes))
    report = verify(store)
    assert not report.passed
    assert all("\n" not in str(problem) for problem in report.problems)


def test_giant_metadata_are_not_read(store: Path) -> None:
    with (store / "0000/zarr.json").open("ab") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(StoreError, match="larger than 536870912 bytes"):
        attnlens.open(store)[0]


def test_cyclic_metadata_cannot_be(store: Path, tmp_path: Path) -> None:
    """JSON has no references; a folder that links to itself is not followed."""
    (store / "0000" / "again").symlink_to(store)
    assert all("again" not in path for path in open_store(store).place.files())
    assert unpack(pack(store).path, tmp_path / "b.zarr").files == len(open_store(store).place.files())


def test_more_arrays_than_a_capture_has(store: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        copies = document["consolidated_metadata"]["metadata"]
        copies |= {f"x{number}": copies["token_id"] for number in range(2000)}

    change(store / "0000/zarr.json", edit)
    with pytest.raises(StoreError, match="more than 1024"):
        attnlens.open(store)[0]


def test_names_and_texts_are_shown_as_text(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = "[bold]\x1b[31m\x07\u202e$$<b id=evil>"
    words: Any = zarr.open_array(store / "0000/token_text", mode="r")
    put(store, "token_text", encode_texts([evil] * words.chunks[0]))

    def edit(document: dict[str, Any]) -> None:
        ours = document["attributes"]["attnlens"]
        ours |= {"prompt": evil, "completion": evil, "device": evil, "error": evil}
        ours["model"] |= {"id": evil, "architecture": evil}
        ours["versions"] = {evil: evil}

    change(store / "0000/zarr.json", edit)
    seal(store, "0000")
    for arguments in (
        ["info", store],
        ["ls", store],
        ["verify", store, "-q"],
        ["render", store, "-q", "-o", f"{store}-p"],
    ):
        subprocess.run([sys.executable, "-m", "attnlens", *map(str, arguments)], check=False)
        shown = "".join(capfd.readouterr())
        assert not {"\x1b", "\x07", "\u202e"} & set(shown), arguments
        assert "Traceback" not in shown
    page = Path(f"{store}-p/index.html").read_text()
    assert "<b id=evil>" not in page


def test_a_large_shape_without_data_does_not_fill_memory(store: Path) -> None:
    from zarr.storage import StorePath

    from attnlens.store.chunks import read
    from attnlens.store.places import Folder
    from attnlens.store.places.zarr_store import PlaceStore

    document = json.loads((store / "0000/attention_weight/zarr.json").read_text())
    document["shape"] = [3, 2, 40_000, 40_000]
    place = StorePath(PlaceStore(Folder(store)), "0000/attention_weight")
    weights = zarr.Array.from_dict(place, document | {"storage_transformers": ()})
    every = tuple(slice(0, size, 1) for size in weights.shape)
    with pytest.raises(StoreError, match=r"19200000000 bytes would be read from files of \d+ bytes.*--no-limits"):
        read(weights, every)


def test_limits_can_be_lifted(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_limits() == Limits()
    done = subprocess.run(
        [sys.executable, "-m", "attnlens", "--no-limits", "info", str(store)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "complete" in done.stdout
    monkeypatch.setenv(NO_LIMITS, "1")
    assert default_limits().axis > 1 << 30
    assert open_store(store)[0].n_token == 13


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_fuzzed_stores_leave_one_line_or_nothing(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A few of them; `python tests/fuzz_store.py 0 1000` runs many, docs/security.md says how many were."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert fuzz(0, count) == []
    assert os.environ.get(NO_LIMITS) is None
