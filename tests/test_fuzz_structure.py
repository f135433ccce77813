"""Stores damaged by someone who knows their structure: one line or what was written, see fuzz_structure.py."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest

import attnlens
from attnlens.render.viewer.served import Served
from attnlens.render.viewer.wire import Refusal
from attnlens.schemas.errors import StoreError
from attnlens.store.manifest import document_digest
from attnlens.store.places.archive import TAILS
from attnlens.store.tools.extend import extend_capture, extending
from attnlens.store.tools.pack import pack
from attnlens.store.verify import verify
from fuzz_structure import fuzz
from store_sample import Sample
from test_store_qk import Vectors


@pytest.mark.parametrize(
    "count", [4, pytest.param(int(os.environ.get("ATTNLENS_FUZZ", "400")), marks=pytest.mark.nightly)]
)
def test_damage_by_someone_who_knows_the_structure(count: int) -> None:
    """docs/security.md says how many were run; `python tests/fuzz_structure.py FIRST COUNT` runs more."""
    assert fuzz(0, count)[0] == []


def test_an_entry_of_a_zip_without_a_name(tmp_path: Path) -> None:
    Sample().write(tmp_path / "run.zarr")
    packed = tmp_path / "run.zarr.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted((tmp_path / "run.zarr").rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(tmp_path / "run.zarr"))
    data = packed.read_bytes()
    end = data.rfind(b"PK\x05\x06")
    size, start = struct.unpack_from("<2L", data, end + 12)
    (length,) = struct.unpack_from("<H", data, start + 28)
    entry = data[start : start + 28] + b"\0\0" + data[start + 30 : start + 46]
    tail = data[start + 46 + length : end + 12] + struct.pack("<2L", size - length, start) + data[end + 20 :]
    packed.write_bytes(data[:start] + entry + tail)
    with pytest.raises(StoreError, match="entry '' has a name that could lead out of the store"):
        attnlens.open(packed)


def test_a_front_that_is_not_the_one_that_was_written_is_not_served(tmp_path: Path) -> None:
    """The manifest does not list it, the metadata have its hash."""
    Sample().write(tmp_path / "run.zarr")
    front = tmp_path / "run.zarr/0000/manifest_file/front.bin"
    served = Served(tmp_path / "run.zarr", "run")
    assert served.file("0000/manifest_file/front.bin") is not None
    front.write_bytes(front.read_bytes()[:-1])
    with pytest.raises(Refusal, match=r"front\.bin is not the file that was written"):
        served.file("0000/manifest_file/front.bin")


@pytest.mark.parametrize("name", ["token_id/c/0", "chunk_sha256/c/0/0", "attention_max/c/0/0/0"])
def test_arrays_are_not_added_to_a_capture_one_of_whose_files_is_a_pipe(tmp_path: Path, name: str) -> None:
    """It would be waited for."""
    file = tmp_path / "run.zarr/0000" / name
    Sample(n_prompt=150, n_layer=4, n_head=4).write(tmp_path / "run.zarr")
    file.unlink()
    os.mkfifo(file)
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    with pytest.raises(StoreError, match="no plain file"), extending(tmp_path / "run.zarr"):
        extend_capture(tmp_path / "run.zarr", capture, {}, lambda extension: None)


def test_a_zip_that_lacks_a_file_of_which_it_has_the_end(tmp_path: Path) -> None:
    """`lens pack` keeps copies of the ends of large files, for readers far away."""
    Sample(n_prompt=150, n_generated=3, n_layer=4, n_head=4).write(tmp_path / "run.zarr")
    whole, packed = pack(tmp_path / "run.zarr", tmp_path / "run.zarr.zip").path, tmp_path / "less.zarr.zip"
    lost = "0000/attention_weight/c/0/0/0/0"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(packed, "w") as new:
        assert lost.encode() in old.read(TAILS)
        new.comment = old.comment
        for entry in old.infolist():
            if entry.filename != lost:
                new.writestr(entry.filename, old.read(entry))
    found = [problem for problem in verify(packed).problems if "the zip is damaged at" in problem.message]
    assert [problem.message for problem in found] == [f"the zip is damaged at {lost}: is not in the archive"]


@pytest.mark.parametrize("mode", ["dense", "qk"])
def test_a_layer_that_is_said_to_have_no_heads(mode: str, tmp_path: Path) -> None:
    sample = Vectors(kinds=("full", "full")) if mode == "qk" else Sample()
    sample.write(tmp_path / "run.zarr")
    document = tmp_path / "run.zarr/0000/zarr.json"
    text = json.loads(document.read_text())
    text["attributes"]["attnlens"]["model"]["layers"][0]["n_head"] = 0
    text["attributes"]["attnlens"]["digest"] = document_digest(text)
    document.write_text(json.dumps(text))
    assert verify(tmp_path / "run.zarr").problems
