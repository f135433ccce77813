"""How arrays are cut into chunks and shards. Pure: sizes in, shapes out.

Chunks belong to the writer; a reader takes them from the array's metadata and assumes nothing. Two layouts of
`attention_weight` follow the order in which rows arrive:

- *rows*: one query row of as many layers and heads as fit 1 MiB is a chunk, so one picture reads one chunk;
- *layers*: one layer is a shard, for prompts whose rows are too large to hold until the last layer is done; one query
  row of it is a chunk, of as many heads and keys as fit 256 KiB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

KIB, MIB = 1 << 10, 1 << 20
KEY_BLOCK = 1024
SHARD_ROWS = 64
SHARD_BYTES = 64 * MIB
ROW_CHUNK_BYTES = MIB
LAYER_CHUNK_BYTES = 256 * KIB
REDUCTION_CHUNK_BYTES = 64 * KIB
SMALL_SHARD_BYTES = 4 * MIB
LENS_TOKENS = 32
QUERY_TOKENS, KEY_TOKENS = 64, 128
VECTOR_CHUNK_BYTES = 2 * MIB
VECTOR_SHARD_BYTES = 8 * MIB
LENS_SHARD_TOKENS = 512
LIST_CHUNK = 16 * KIB
BYTES_CHUNK = 64 * KIB

AttentionOrder = Literal["rows", "layers"]


@dataclass(frozen=True)
class ChunkLayout:
    """Shape of the inner chunk and, when the array is sharded, of the shard. The chunk divides the shard."""

    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionLayout:
    """Layout of `attention_weight` (layer, head, query, key), and the order in which its rows can be written."""

    order: AttentionOrder
    weight: ChunkLayout


def even(length: int, most: int) -> int:
    """The smallest block that cuts `length` into as few pieces as blocks of at most `most` do."""
    return math.ceil(length / math.ceil(length / max(1, min(most, length))))


def power_of_two(most: int, length: int) -> int:
    """The largest power of two ≤ `most` that is not twice as long as `length` needs; at least 1."""
    size = 1
    while size * 2 <= most and size < length:
        size *= 2
    return size


def _grow(chunk: tuple[int, ...], shape: tuple[int, ...], itemsize: int, limit: int, axes: tuple[int, ...],
          rows: int, most_rows: int) -> tuple[int, ...]:  # fmt: skip
    """Shard shape: whole multiples of `chunk` along `axes` in that order, then powers of two along axis `rows`."""
    shard = list(chunk)
    for axis in axes:
        room = limit // (math.prod(shard) * itemsize)
        shard[axis] *= even(math.ceil(shape[axis] / chunk[axis]), max(1, room))
    room = limit // (math.prod(shard) * itemsize)
    most = min(room, most_rows // chunk[rows])
    shard[rows] *= power_of_two(most, math.ceil(shape[rows] / chunk[rows]))
    return tuple(shard)


def attention_layout(
    *, n_layer: int, n_head: int, n_prompt: int, capacity: int, key_rows_hold: int, head_groups: int = 1
) -> AttentionLayout:
    """Layout for a timeline of up to `capacity` tokens, `n_prompt` of which run in one pass.

    `key_rows_hold` is the number of bytes of prompt rows that may wait in memory until the last layer is done; more
    than that is written layer by layer. `head_groups`: so many processes write the heads of their own; no file holds
    heads of two.
    """
    n_head //= head_groups
    shape = (n_layer, n_head, capacity, capacity)
    keys = even(capacity, KEY_BLOCK)
    if 2 * n_layer * n_head * n_prompt * n_prompt <= key_rows_hold:
        heads = _heads(n_head, ROW_CHUNK_BYTES // (2 * keys), head_groups)
        layers = even(n_layer, ROW_CHUNK_BYTES // (2 * keys * heads))
        chunk = (layers, heads, 1, keys)
        shard = _grow(chunk, shape, 2, SHARD_BYTES, (3, 1, 0), rows=2, most_rows=SHARD_ROWS)
        return AttentionLayout(order="rows", weight=_apart(chunk, shard, n_head, head_groups))
    keys = even(capacity, max(KEY_BLOCK, LAYER_CHUNK_BYTES // (2 * n_head)))
    heads = _heads(n_head, LAYER_CHUNK_BYTES // (2 * keys), head_groups)
    chunk = (1, heads, 1, keys)
    shard = _grow(chunk, shape, 2, SHARD_BYTES, (3, 1), rows=2, most_rows=SHARD_ROWS)
    return AttentionLayout(order="layers", weight=_apart(chunk, shard, n_head, head_groups))


def _heads(n_head: int, most: int, head_groups: int) -> int:
    """Heads of a chunk: even parts, which divide the heads of a process where there are several."""
    if head_groups == 1:
        return even(n_head, most)
    return next(size for size in range(max(1, min(n_head, most)), 0, -1) if n_head % size == 0)


def _apart(chunk: tuple[int, ...], shard: tuple[int, ...], n_head: int, head_groups: int) -> ChunkLayout:
    """The layout, with shards that end where the heads of a process do."""
    if head_groups > 1 and n_head % shard[1]:
        shard = (shard[0], chunk[1], *shard[2:])
    return ChunkLayout(chunk, shard)


def reduction_layout(*, n_layer: int, generated: int, capacity: int) -> ChunkLayout:
    """`attention_max` and `attention_mean` (generated, layer, key): one query of all layers is one small chunk."""
    keys = even(capacity, KEY_BLOCK)
    row = 2 * n_layer * keys
    rows = power_of_two(min(8, REDUCTION_CHUNK_BYTES // row), generated)
    chunk = (rows, n_layer, keys)
    shape = (generated, n_layer, capacity)
    return ChunkLayout(chunk, _grow(chunk, shape, 2, SMALL_SHARD_BYTES, (2,), rows=0, most_rows=SHARD_ROWS))


def vector_layout(*, n_layer: int, heads: int, features: int, itemsize: int, capacity: int, tokens: int) -> ChunkLayout:
    """`attention_q` and `attention_k` (token, layer, head, feature): some layers of up to `tokens` tokens are a chunk.

    A row needs its own query and the keys of all tokens before it, of the layers that are looked at: so chunks of
    queries are short, those of keys long enough to be few, and neither spans more layers than make a fair read. Shards
    have all layers, so that a token that was generated changes one file.
    """
    vector = heads * features * itemsize
    tokens = power_of_two(min(tokens, VECTOR_CHUNK_BYTES // vector), capacity)
    layers = even(n_layer, VECTOR_CHUNK_BYTES // (vector * tokens))
    chunk = (tokens, layers, heads, features)
    shape = (capacity, n_layer, heads, features)
    return ChunkLayout(chunk, _grow(chunk, shape, itemsize, VECTOR_SHARD_BYTES, (1,), rows=0, most_rows=1024))


def lens_layout(*, depths: int, capacity: int, ranks: int | None, itemsize: int = 4) -> ChunkLayout:
    """Lens arrays (depth, token[, rank]): all depths and ranks of 32 tokens are one chunk."""
    width = depths * (ranks or 1) * itemsize
    tokens = power_of_two(min(LENS_TOKENS, SMALL_SHARD_BYTES // width), capacity)
    tail = () if ranks is None else (ranks,)
    chunk = (depths, tokens, *tail)
    shape = (depths, capacity, *tail)
    return ChunkLayout(chunk, _grow(chunk, shape, itemsize, SMALL_SHARD_BYTES, (), rows=1, most_rows=LENS_SHARD_TOKENS))


def norm_layout(*, n_layer: int, n_head: int, capacity: int) -> ChunkLayout:
    """`value_norm` (layer, head, key): all layers and heads of 32 keys are one chunk."""
    keys = power_of_two(min(LENS_TOKENS, SMALL_SHARD_BYTES // (4 * n_layer * n_head)), capacity)
    chunk = (n_layer, n_head, keys)
    shape = (n_layer, n_head, capacity)
    return ChunkLayout(chunk, _grow(chunk, shape, 4, SMALL_SHARD_BYTES, (), rows=2, most_rows=LENS_SHARD_TOKENS))


def residual_layout(
    *, depths: int, features: int, itemsize: int, n_prompt: int, capacity: int, hold: int
) -> tuple[AttentionOrder, ChunkLayout]:
    """`residual` (depth, token, feature), and the order in which it can be written, as for attention.

    As other arrays along depth while the prompt's rows fit `hold` bytes; else one depth is a shard of up to 1 MiB.
    """
    if depths * n_prompt * features * itemsize <= hold:
        return "rows", lens_layout(depths=depths, capacity=capacity, ranks=features, itemsize=itemsize)
    chunk = (1, power_of_two(8, capacity), features)
    shape = (depths, capacity, features)
    return "layers", ChunkLayout(chunk, _grow(chunk, shape, itemsize, MIB, (), rows=1, most_rows=LENS_SHARD_TOKENS))


def list_layout(length: int, chunk: int = LIST_CHUNK) -> ChunkLayout:
    """One-dimensional arrays: one chunk while they are small, no shards."""
    return ChunkLayout((max(1, min(length, chunk)),))
