from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from attnlens.store import layout
from attnlens.store.layout import MIB, ChunkLayout

layers = st.integers(1, 128)
heads = st.integers(1, 128)
tokens = st.one_of(st.integers(1, 5000), st.integers(1, 1_000_000))


def covers(shape: tuple[int, ...], chunks: ChunkLayout) -> None:
    """The shard is whole chunks, and the grid of shards reaches every cell without an empty shard."""
    assert len(chunks.chunk) == len(shape)
    outer = chunks.shard or chunks.chunk
    for length, inner, shard in zip(shape, chunks.chunk, outer, strict=True):
        assert 1 <= inner <= shard
        assert shard % inner == 0
        assert math.ceil(length / shard) * shard >= length
        assert (math.ceil(length / shard) - 1) * shard < length


@given(layers, heads, tokens, st.integers(1, 1_000_000), st.sampled_from([0, 1 << 20, 64 * MIB, 1 << 40]))
def test_attention_layout(n_layer: int, n_head: int, capacity: int, n_prompt: int, hold: int) -> None:
    n_prompt = min(n_prompt, capacity)
    found = layout.attention_layout(
        n_layer=n_layer, n_head=n_head, n_prompt=n_prompt, capacity=capacity, key_rows_hold=hold
    )
    chunk, shard = found.weight.chunk, found.weight.shard
    assert shard is not None
    covers((n_layer, n_head, capacity, capacity), found.weight)
    assert (found.order == "rows") == (2 * n_layer * n_head * n_prompt**2 <= hold)
    assert shard[2] <= 64
    assert shard[2] & (shard[2] - 1) == 0
    assert 2 * math.prod(shard) <= 64 * MIB
    if found.order == "rows":
        assert chunk[3] <= 1024
        assert chunk[2] == 1
        assert 2 * math.prod(chunk) <= MIB
    else:
        assert chunk[0] == shard[0] == 1
        assert chunk[2] == 1
        assert 2 * math.prod(chunk) <= 256 << 10


@given(layers, tokens, st.integers(1, 1_000_000))
def test_reduction_layout(n_layer: int, capacity: int, generated: int) -> None:
    generated = min(generated, capacity)
    found = layout.reduction_layout(n_layer=n_layer, generated=generated, capacity=capacity)
    assert found.shard is not None
    covers((generated, n_layer, capacity), found)
    assert found.chunk[1] == n_layer
    assert found.chunk[2] <= 1024
    assert found.chunk[0] == 1 or 2 * math.prod(found.chunk) <= 64 << 10
    assert 2 * math.prod(found.shard) <= 4 * MIB


@given(st.integers(2, 129), tokens, st.one_of(st.none(), st.integers(1, 1000)))
def test_lens_layout(depths: int, capacity: int, ranks: int | None) -> None:
    found = layout.lens_layout(depths=depths, capacity=capacity, ranks=ranks)
    assert found.shard is not None
    covers((depths, capacity, *([] if ranks is None else [ranks])), found)
    assert found.chunk[0] == depths
    assert found.chunk[1] <= 32
    assert found.shard[1] <= 512
    assert 4 * math.prod(found.shard) <= 4 * MIB


@given(st.integers(0, 1_000_000))
def test_list_layout(length: int) -> None:
    found = layout.list_layout(length)
    assert found.shard is None
    assert 1 <= found.chunk[0] <= 16 << 10


def test_a_short_capture_of_a_small_model_has_one_chunk_a_row() -> None:
    found = layout.attention_layout(n_layer=30, n_head=9, n_prompt=300, capacity=400, key_rows_hold=64 * MIB)
    assert found.weight == ChunkLayout((30, 9, 1, 400), (30, 9, 64, 400))


def test_one_row_of_a_large_model_is_split_by_layers() -> None:
    found = layout.attention_layout(n_layer=80, n_head=64, n_prompt=10, capacity=32768, key_rows_hold=64 * MIB)
    assert found.order == "rows"
    assert found.weight.shard == (16, 64, 1, 32768)
