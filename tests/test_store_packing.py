"""How an array was packed is read the same from every version of zarr."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.storage import LocalStore

from attnlens.store.create import create_array
from attnlens.store.layout import ChunkLayout
from attnlens.store.packing import packing_for, packing_of

WORDS: dict[str, Any] = {"string": str, "enum": lambda word: SimpleNamespace(value=word)}
"""A codec's words as zarr 3.3 and later hold them, and as earlier ones do."""


def rewritten(codec: Any, form: str) -> Any:
    """The codec with its words in another form; its JSON stays what it was."""
    said = codec.to_dict()
    configuration = said.get("configuration", {})
    new = copy(codec)
    object.__setattr__(new, "to_dict", lambda: said)
    for key in {"index_location", "endian"} & set(configuration):
        object.__setattr__(new, key, WORDS[form](configuration[key]))
    for key in {"codecs", "index_codecs"} & set(configuration):
        object.__setattr__(new, key, tuple(rewritten(one, form) for one in getattr(new, key)))
    return new


def in_form(array: Any, form: str) -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(codecs=[rewritten(one, form) for one in array.metadata.codecs]))


@pytest.mark.parametrize("form", WORDS)
@pytest.mark.parametrize(("name", "n_axis"), [("attention_weight", 4), ("attention_q", 4), ("residual", 3)])
def test_our_own_packing_is_known(name: str, n_axis: int, form: str, tmp_path: Path) -> None:
    shape = (4, 2, 16, 16)[:n_axis]
    layout = ChunkLayout((2, 1, 8, 16)[:n_axis], shape)
    array = create_array(LocalStore(tmp_path), "0000", name, shape, layout, model_dtype="float32")
    expected = packing_for(name, str(array.dtype), sharded=True)
    assert packing_of(array) == packing_of(in_form(array, form)) == expected


@pytest.mark.parametrize("form", WORDS)
@pytest.mark.parametrize(("endian", "location"), [("big", "end"), ("little", "start")])
def test_bytes_and_indexes_that_lie_otherwise_are_none_of_ours(
    endian: Any, location: Any, form: str, tmp_path: Path
) -> None:
    inner: list[Any] = [BytesCodec(endian=endian), ZstdCodec(level=1), Crc32cCodec()]
    codec = ShardingCodec(chunk_shape=(4,), codecs=inner, index_location=location)
    array = zarr.create_array(tmp_path, shape=(8,), dtype="float32", chunks=(8,), serializer=codec, compressors=None)
    assert packing_of(array) is None
    assert packing_of(in_form(array, form)) is None
