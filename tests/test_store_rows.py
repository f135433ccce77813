"""One row of a long capture is read and compared by itself: its digests, not those of whole files."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from attnlens.schemas.errors import StoreError
from attnlens.store.manifest import MANIFEST_ARRAYS
from attnlens.store.places import Folder
from attnlens.store.reader import open_store
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.merge import merge
from attnlens.store.tools.pack import pack
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample
from store_server import Served, serve


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sample]:
    """A layer is a shard, as in long prompts, and rows are large enough for digests of chunks."""
    path = tmp_path_factory.mktemp("rows") / "run.zarr"
    sample = Sample(n_prompt=500, n_generated=6, n_layer=4, n_head=6, vocabulary_size=30)
    sample.write(path, block=64, key_rows_hold=0)
    return path, sample


@pytest.fixture
def copy(stored: tuple[Path, Sample], tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored[0], tmp_path / "run.zarr"))


def chunks_of(path: Path, count: int) -> list[tuple[int, int]]:
    """Offset and length of each chunk of a shard, by the Zarr specification alone."""
    entries = np.frombuffer(path.read_bytes()[-16 * count - 4 : -4], "<u8").reshape(count, 2)
    return [(int(start), int(size)) for start, size in entries]


def arrays_with_digests(path: Path) -> dict[str, int]:
    """How many chunks of each array of the capture 0000 have a digest, all of them right: by zarr and the format."""
    group: Any = zarr.open_group(path, mode="r")["0000"]
    table: Any = group["chunk_sha256"]
    arrays: Any = table.attrs["attnlens"]["arrays"]
    seen = dict.fromkeys(arrays, 0)
    for name, said in arrays.items():
        array: Any = group[str(name)]
        inside = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
        for file in (path / "0000" / name / "c").rglob("*"):
            if not file.is_file():
                continue
            at = [int(part) for part in file.relative_to(path / "0000" / name / "c").parts]
            for number, (start, size) in enumerate(chunks_of(file, math.prod(inside))):
                within = np.unravel_index(number, inside)
                place = [a * n + int(w) for a, n, w in zip(at, inside, within, strict=True)]
                flat = said["first"]
                for rank, axis in enumerate(said["order"]):
                    flat += place[axis] * math.prod(said["grid"][other] for other in said["order"][rank + 1 :])
                there = start != 2**64 - 1
                wanted = hashlib.sha256(file.read_bytes()[start : start + size]).digest() if there else bytes(32)
                assert table[flat].tobytes() == wanted, (name, place)
                seen[name] += there
    return seen


def test_every_chunk_has_its_sha256_where_the_format_says(stored: tuple[Path, Sample]) -> None:
    seen = arrays_with_digests(stored[0])
    assert seen["attention_weight"] >= 4 * 500
    assert verify(stored[0]).problems == []


def test_one_row_reads_less_than_three_times_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 tokens. The row is written at the end of few: what a row costs does not depend on how many there are."""
    path = long_store(tmp_path / "long.zarr")
    read = counted(monkeypatch)
    rows = open_store(path)[0].attention.rows(4000)
    assert rows.shape == (LAYERS, HEADS, 1, LENGTH)
    np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=2e-2)
    assert sum(read) <= 3 * 2 * LAYERS * HEADS * LENGTH
    with serve(Served(tmp_path)) as server:
        far = open_store(f"{server.url}/long.zarr")[0].attention.rows(4000)
        assert server.bytes <= 3 * 2 * LAYERS * HEADS * LENGTH
    np.testing.assert_array_equal(far, rows)


LAYERS, HEADS, LENGTH = 2, 9, 4096


def long_store(path: Path) -> Path:
    rng = np.random.default_rng(0)
    sample = Sample(n_prompt=4, n_generated=0, n_layer=LAYERS, n_head=HEADS, lens=False)
    writer = StoreWriter.create(path)
    about = sample.metadata(id=writer.new_id(), n_prompt=LENGTH, n_token=LENGTH)
    text = "x"
    with writer.capture(about, capacity=LENGTH, key_rows_hold=0) as out:
        out.tokens([1] * LENGTH, [text] * LENGTH, [text.encode()] * LENGTH, [False] * LENGTH)
        for start in range(0, LENGTH, 512):
            weights = rng.dirichlet(np.full(LENGTH, 0.3), (HEADS, 8)).astype(np.float16)
            block = np.repeat(weights, 64, axis=1)
            for layer in range(LAYERS):
                out.attention(layer, start, 0, block)
        for layer in range(LAYERS):
            out.reductions(layer, LENGTH - 1, 0, *(np.zeros((1, LENGTH), np.float16),) * 2)
        out.model_probability(0, np.full(LENGTH, 0.5, np.float32))
        out.rows(LENGTH)
        out.finish({"completion": ""})
    return path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    plain = Folder.read

    def read(self: Folder, path: str, start: int = 0, stop: int | None = None) -> bytes:
        data = plain(self, path, start, stop)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(Folder, "read", read)
    return sizes


def swapped_files(capture: Path) -> None:
    one, other = (capture / f"attention_weight/c/{layer}/0/1/0" for layer in (1, 2))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def entries(file: Path) -> tuple[bytes, Any, int]:
    data = file.read_bytes()
    count = 64
    return data, np.frombuffer(data[-16 * count - 4 : -4], "<u8").reshape(count, 2).copy(), count


def rewritten(file: Path, data: bytes, index: Any) -> None:
    import google_crc32c

    table = index.astype("<u8").tobytes()
    file.write_bytes(data[: -len(table) - 4] + table + int(google_crc32c.value(table)).to_bytes(4, "little"))


def swapped_entries(capture: Path) -> None:
    file = capture / "attention_weight/c/1/0/1/0"
    data, index, _ = entries(file)
    index[[36, 37]] = index[[37, 36]]
    rewritten(file, data, index)


def doubled_entry(capture: Path) -> None:
    file = capture / "attention_weight/c/1/0/1/0"
    data, index, _ = entries(file)
    index[36] = index[37]
    rewritten(file, data, index)


def absent_entry(capture: Path) -> None:
    file = capture / "attention_weight/c/1/0/1/0"
    data, index, _ = entries(file)
    index[36] = 2**64 - 1
    rewritten(file, data, index)


def altered_chunk(capture: Path) -> None:
    """Another row of the same numbers in its place, with a checksum that is right."""
    file = capture / "attention_weight/c/1/0/1/0"
    data, index, _ = entries(file)
    start, size = (int(value) for value in index[35])
    index[36] = len(data) - 16 * 64 - 4, size
    body, tail = data[: -16 * 64 - 4], data[-16 * 64 - 4 :]
    rewritten(file, body + data[start : start + size] + tail, index)


def truncated(capture: Path) -> None:
    file = capture / "attention_weight/c/1/0/1/0"
    file.write_bytes(file.read_bytes()[:-100])


def removed(capture: Path) -> None:
    (capture / "attention_weight/c/1/0/1/0").unlink()


def altered_digests(capture: Path) -> None:
    for file in (capture / "chunk_sha256/c").rglob("0"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(bytes(data))


def removed_digests(capture: Path) -> None:
    shutil.rmtree(capture / "chunk_sha256/c")


DAMAGE = [swapped_files, swapped_entries, doubled_entry, absent_entry, altered_chunk, truncated, removed,
          altered_digests, removed_digests]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_row_that_is_not_the_one_that_was_written_is_refused(
    copy: Path, damage: Callable[[Path], None], packed: bool
) -> None:
    damage(copy / "0000")
    if packed:
        where = copy.with_suffix(".zarr.zip")
        stored_zip(copy, where)
    else:
        where = copy
    capture = open_store(where)[0]
    named = r"0000/attention_weight: chunk c/1/0/1/0 is damaged \("
    named += "chunk_sha256, which vouches for it" if damage in (altered_digests, removed_digests) else "(its|is)"
    with pytest.raises(StoreError, match=named):
        capture.attention.rows([100], layers=[1])


def stored_zip(folder: Path, target: Path) -> None:
    import zipfile

    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())


def test_other_rows_of_a_damaged_file_are_still_read(copy: Path, stored: tuple[Path, Sample]) -> None:
    swapped_entries(copy / "0000")
    rows = open_store(copy)[0].attention.rows([105], layers=[1])
    np.testing.assert_array_equal(rows[0, :, 0], stored[1].weights[1, :, 105])


def test_a_store_without_digests_is_compared_file_by_file(copy: Path, stored: tuple[Path, Sample]) -> None:
    from attnlens.store.tools import seal

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "write_digests", lambda *_: {})
        seal.seal(copy, "0000")
    assert "chunk_sha256" not in open_store(copy)[0]
    np.testing.assert_array_equal(
        open_store(copy)[0].attention.rows([100])[:, :, 0], stored[1].weights[:, :, 100].astype(np.float32)
    )
    swapped_entries(copy / "0000")
    with pytest.raises(StoreError, match="attention_weight: chunk c/1/0/1/0 is damaged"):
        open_store(copy)[0].attention.rows([105], layers=[1])


def test_tools_keep_the_digests_or_make_them_anew(stored: tuple[Path, Sample], tmp_path: Path) -> None:
    cropped = crop(stored[0], tmp_path / "crop.zarr", keep=Keep(layers="1:3")).path
    merged = merge([stored[0], cropped], tmp_path / "both.zarr").path
    packed = pack(merged, tmp_path / "both.zarr.zip").path
    for where in (cropped, merged, packed):
        assert verify(where).problems == []
    for capture in open_store(packed):
        assert "chunk_sha256" in capture
        np.testing.assert_array_equal(
            capture.attention.rows([300], layers=[2])[0, :, 0], stored[1].weights[2, :, 300].astype(np.float32)
        )
    assert json.loads((merged / "0001/chunk_sha256/zarr.json").read_text())["attributes"]["attnlens"]["arrays"]


def test_verify_names_the_file_whose_chunk_has_another_digest(copy: Path) -> None:
    """A store that vouches for itself, but whose digests are of other chunks: its writer was wrong."""
    from attnlens.store.tools import seal

    table: Any = zarr.open_array(copy / "0000/chunk_sha256", mode="r+")
    first = table.attrs["attnlens"]["arrays"]["attention_weight"]["first"]
    table[first] = table[first + 401]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "write_digests", lambda *_: {})
        patch.setattr(seal, "PROOF_ARRAYS", MANIFEST_ARRAYS)
        seal.seal(copy, "0000")
    found = [problem for problem in verify(copy).problems if "chunk_sha256" in problem.message]
    assert [problem.where for problem in found] == ["0000/attention_weight/c/0/0/0/0"]
