"""The container of planes against blosc's own library, and against containers that lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc
from zarr.codecs import Crc32cCodec, ZstdCodec

import attnlens
from attnlens.store.layout import vector_layout
from attnlens.store.planes import HEADER, decode_planes, encode_planes
from attnlens.store.verify import verify
from plain_bits import own_order
from test_store_qk import Vectors

WIDTHS = (1, 2, 4, 8)


def numbers(seed: int, count: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of numbers that are alike where they are large, as activations are."""
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float64 if width == 8 else np.float32)
    if width in (1, 2):  # the upper bytes, as of bfloat16
        return np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4)[:, 4 - width :]).reshape(-1)
    return values.view(np.uint8)


@given(st.integers(0, 99), st.integers(1, 70_000), st.sampled_from(WIDTHS))
@settings(max_examples=40, deadline=None)
def test_blosc_reads_what_is_written(seed: int, count: int, width: int) -> None:
    data = numbers(seed, count, width)
    packed = encode_planes(data, width)
    assert bytes(Blosc().decode(packed)) == data.tobytes()
    assert decode_planes(packed, data.size).tobytes() == data.tobytes()


def takes_width() -> bool:
    try:
        Blosc("zstd", typesize=2)
    except TypeError:
        return False
    return True


NEEDS_WIDTH = pytest.mark.skipif(not takes_width(), reason="this numcodecs cannot be told a width")


@NEEDS_WIDTH
@given(
    st.integers(0, 99), st.integers(1, 40_000), st.sampled_from(WIDTHS), st.sampled_from([0, 1, 5]),
    st.sampled_from([Blosc.NOSHUFFLE, Blosc.SHUFFLE]), st.sampled_from([0, 512, 4096, 65536]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_blosc_writes_is_read(seed: int, count: int, width: int, level: int, shuffle: int, block: int) -> None:
    data = numbers(seed, count, width)
    packed = bytes(Blosc("zstd", level, shuffle, block, typesize=width).encode(data))
    assert decode_planes(packed, data.size).tobytes() == data.tobytes()


def test_planes_take_less_than_numbers() -> None:
    data = numbers(0, 1 << 18, 4)
    planes, plain = len(encode_planes(data, 4)), len(Blosc("zstd", 1, Blosc.NOSHUFFLE).encode(data))
    assert planes < 0.87 * data.size
    assert planes < 0.94 * plain


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_container_is_an_error_or_numbers(data: st.DataObject) -> None:
    count, width = data.draw(st.sampled_from([30, 200, 3000])), data.draw(st.sampled_from([2, 4]))
    packed = bytearray(encode_planes(numbers(1, count, width), width))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, min(60, len(packed) - 1)))] = data.draw(st.integers(0, 255))
    short = bytes(packed[: data.draw(st.integers(0, len(packed)))])
    for broken in (bytes(packed), short):
        try:
            assert decode_planes(broken, count * width).size <= count * width
        except (ValueError, RuntimeError):
            continue


@NEEDS_WIDTH
def test_sizes_and_kinds_are_looked_at_first() -> None:
    data = numbers(2, 4096, 4)
    packed = encode_planes(data, 4)
    with pytest.raises(ValueError, match="holds 16384 bytes where a chunk has no more than 16383"):
        decode_planes(packed, data.size - 1)
    with pytest.raises(ValueError, match="of a kind that is not read"):
        decode_planes(bytes(Blosc("zstd", 1, Blosc.BITSHUFFLE, typesize=4).encode(data)), data.size)
    with pytest.raises(ValueError, match="not compressed by zstd"):
        decode_planes(bytes(Blosc("lz4", 1, Blosc.SHUFFLE, typesize=4).encode(data)), data.size)
    with pytest.raises(ValueError, match="shorter than its header"):
        decode_planes(packed[: HEADER.size - 1], data.size)
    for length in range(HEADER.size, len(packed)):
        with pytest.raises(ValueError, match="cut short"):
            decode_planes(packed[:length], data.size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stores_of_zstd_alone_are_read_as_well(tmp_path: Path, dtype: str) -> None:
    """Queries and keys as they were written before: token after token, in frames of zstd, bits in their own order."""
    sample = Vectors(kinds=("full", "sliding", "shared"), dtype=dtype, n_prompt=70, n_generated=9)
    path = tmp_path / "run.zarr"
    sample.write(path)
    rows = attnlens.open(path)[0].attention.rows(range(sample.n_fed))
    group: Any = zarr.open_group(path, mode="r")["0000"]
    for name in ("attention_q", "attention_k"):
        array = group[name]
        assert [codec["name"] for codec in array.metadata.to_dict()["codecs"][0]["configuration"]["codecs"]] == [
            "transpose", "bytes", "blosc", "crc32c",
        ]  # fmt: skip
        old = vector_layout(
            n_layer=3, heads=array.shape[2], features=array.shape[3], itemsize=4, capacity=array.shape[0], tokens=8
        )
        values, attributes, fill = own_order(array, array[:]), array.attrs.asdict(), array.fill_value
        if attributes["attnlens"].pop("encoding", None):
            fill = 0x7FC0
        shutil.rmtree(path / "0000" / name)
        written: Any = zarr.create_array(
            path, name=f"0000/{name}", shape=values.shape, dtype=values.dtype, chunks=old.chunk, shards=old.shard,
            filters=None, compressors=[ZstdCodec(level=1), Crc32cCodec()], fill_value=fill, attributes=attributes,
            dimension_names=array.metadata.dimension_names,
        )  # fmt: skip
        written[:] = values  # zarr 3.1.1 writes other numbers if it is given them at once
    document = json.loads((path / "0000/zarr.json").read_bytes())
    document["attributes"]["attnlens"] |= {"status": "partial", "manifest": None, "digest": None}
    del document["consolidated_metadata"]
    (path / "0000/zarr.json").write_text(json.dumps(document))
    for name in ("manifest_file", "manifest_sha256"):
        shutil.rmtree(path / "0000" / name)
    np.testing.assert_array_equal(attnlens.open(path)[0].attention.rows(range(sample.n_fed)), rows)
    assert [problem for problem in verify(path).problems if "attention" in str(problem)] == []
