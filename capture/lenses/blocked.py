"""The readings of `readout`, made while the product with the unembedding is still in the processor's cache.

A processor spends more time moving logits to memory and back than multiplying for them. Here the vocabulary is walked
in blocks of columns, and each block is used up at once. Its softmax gives two numbers that can be put together later as
in online softmax (Milakov and Gimelshein 2018): with m the largest logit and p the largest probability, the block's
logsumexp is m - log p. The top k are looked for only in those parts of a block whose largest logit is among the k
largest so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attnlens.capture.lenses.readout import Readout, joined, read_logits, rows_at_a_time

BLOCK_ROWS = 512
BLOCK_COLUMNS = 512
"""The narrowest block: with as many rows its logits are 1 MiB, about what a core can keep to itself."""
WIDEST_COLUMNS = 4096
PART_COLUMNS = 128
BLOCKS_KEPT = 8
"""Blocks whose top k is taken together: every operation of torch costs microseconds, however few rows it has."""
_LOWEST = torch.finfo(torch.float32).min / 4
"""Stands for -inf, the logit of a token that the model rules out: its product with probability 0 is 0, not NaN."""


def can_walk(head: nn.Module) -> bool:
    """Whether the head is nothing but a float32 matrix in this processor's memory, without hooks that would be missed.

    In smaller dtypes logits tie all the time, and a rank needs the very logits that the model would make.
    """
    return (
        type(head) is nn.Linear
        and head.weight.device.type == "cpu"
        and head.weight.dtype == torch.float32
        and not head._forward_hooks
        and not head._forward_pre_hooks
        and not hasattr(head, "_hf_hook")
    )


def read_through(
    stream: Tensor,
    head: nn.Linear,
    following: Tensor,
    top_k: int,
    tracked: Tensor | None = None,
    *,
    scale: float,
    softcap: float | None,
) -> Readout:
    """As `read_logits` of cap(scale · head(stream)), for stream (row, feature) that is ready for the head.

    `following` int64 (row): the id that really came next, -1 for unknown; `tracked` int64 (tracked): ids to follow.
    """
    product = _Product(head, scale, softcap)
    tracked = following[:0] if tracked is None else tracked
    n_row, size = len(stream), head.out_features
    width = min(size, _width(n_row))
    n_block = -(-size // width)
    target = torch.cat([following[:, None], tracked.expand(n_row, -1)], dim=1)
    aim = product.own(stream, following.clamp(min=0), tracked)
    best = _Best(n_row, min(top_k, size))
    met = torch.full(target.shape, torch.nan)
    most, largest, mean = (torch.empty(n_block, n_row) for _ in range(3))
    beaten = torch.empty(n_block, target.shape[1], n_row)
    kept, scratch = torch.empty(min(BLOCKS_KEPT, n_block), n_row, width), torch.empty(n_row, width)
    parts = kept.view(len(kept), n_row, -1, PART_COLUMNS if width % PART_COLUMNS == 0 else width)
    peaks = torch.empty(parts.shape[:3])
    for begin in range(0, n_block, BLOCKS_KEPT):
        blocks = range(begin, min(begin + BLOCKS_KEPT, n_block))
        for block in blocks:
            first, last = block * width, min(size, (block + 1) * width)
            logits = kept[block - begin]
            if last - first < width:  # the last block: tensors of its own, because only whole ones are contiguous
                logits.fill_(-torch.inf)
                logits, scratch = torch.empty(n_row, last - first), torch.empty(n_row, last - first)
            product.block(stream, first, last, out=logits)
            if last - first < width:
                kept[block - begin, :, : last - first] = logits
            torch.amax(parts[block - begin], dim=-1, out=peaks[block - begin])
            torch.amax(peaks[block - begin], dim=-1, out=most[block])
            torch.softmax(logits, dim=-1, out=scratch)
            torch.amax(scratch, dim=-1, out=largest[block])
            torch.sum(scratch.mul_(logits), dim=-1, out=mean[block])
            for column, count in zip(aim.T, beaten[block], strict=True):
                torch.sum(torch.gt(logits, column[:, None], out=scratch), dim=-1, out=count)
        best.add(parts[: len(blocks)], peaks[: len(blocks)], begin * width)
        _meet(met, kept, target - begin * width)
    logsum = most - largest.log()
    total = logsum.logsumexp(dim=0)
    mean.mul_(logsum.sub_(total).exp_())
    known = target >= 0
    rank = torch.where(known, beaten.sum(dim=0).T.int(), -1)
    probability = torch.where(known, (met - total[:, None]).exp(), torch.nan)
    read = Readout(
        token=best.token.int(),
        probability=(best.value - total[:, None]).exp(),
        entropy=(total - mean.sum(dim=0)).clamp(min=0),
        next_rank=rank[:, 0],
        next_probability=probability[:, 0],
        tracked_rank=rank[:, 1:],
        tracked_probability=probability[:, 1:],
    )
    doubtful = (known & (met != aim)).any(dim=1)
    return _counted_again(read, product, stream, following, tracked, doubtful)


def _width(n_row: int) -> int:
    """Columns of a block: fewer for more rows, so that its logits stay in the cache."""
    width = BLOCK_COLUMNS
    while width < WIDEST_COLUMNS and 2 * width * n_row <= BLOCK_COLUMNS * BLOCK_ROWS // 2:
        width *= 2
    return width


@dataclass(frozen=True)
class _Product:
    """Logits of the model, some columns at a time."""

    head: nn.Linear
    scale: float
    softcap: float | None

    def block(self, stream: Tensor, first: int, last: int, *, out: Tensor) -> None:
        """Logits (row, column) of the tokens first … last - 1."""
        weight, bias = self.head.weight[first:last].T, self.bias
        if bias is None:
            torch.mm(stream, weight, out=out)
        else:
            torch.addmm(bias[first:last], stream, weight, out=out)
        self._finish(out)

    def own(self, stream: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """Logits (row, 1 + shared) of one token a row and of some that all rows share.

        By a product of the same kind as the walk's, whose sums are then the same to the last bit.
        """
        token = torch.cat([own, shared])
        logits = torch.mm(stream, self.head.weight[token].T)
        if self.bias is not None:
            logits += self.bias[token]
        self._finish(logits)
        return torch.cat([logits.diagonal()[:, None], logits[:, len(own) :]], dim=1)

    def whole(self, stream: Tensor) -> Tensor:
        """Logits (row, vocabulary)."""
        logits: Tensor = self.head(stream)
        self._finish(logits)
        return logits

    @property
    def bias(self) -> Tensor | None:
        """Bias (vocabulary)."""
        bias: Tensor | None = self.head.bias  # torch's own annotation forgets None
        return bias

    def _finish(self, logits: Tensor) -> None:
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.bias is not None:
            logits.clamp_(min=_LOWEST)


class _Best:
    """The running top k of every row: value and token (row, rank)."""

    def __init__(self, n_row: int, top_k: int) -> None:
        self.value = torch.full((n_row, top_k), -torch.inf)
        self.token = torch.zeros((n_row, top_k), dtype=torch.int64)

    def add(self, logits: Tensor, peaks: Tensor, first: int) -> None:
        """Merges logits (block, row, part, column), the first of which is of token `first`.

        `peaks` (block, row, part): the largest of each part. A part can add to a row's top k only if its peak beats
        what is there and is one of the k highest.
        """
        n_row, top_k = self.value.shape
        n_part, width = logits.shape[2:]
        heights = peaks.transpose(0, 1).flatten(1)
        promising = heights > self.value[:, -1:]
        if heights.shape[1] > top_k:
            promising &= heights >= heights.topk(top_k, dim=-1).values[:, -1:]
        row, part = promising.nonzero(as_tuple=True)
        if not len(row):
            return
        top = logits[part // n_part, row, part % n_part].topk(min(top_k, width), dim=-1)
        place = promising.cumsum(dim=1)
        slot = place[row, part] - 1
        value = self.value.new_full((n_row, int(place[:, -1].max()), top.values.shape[1]), -torch.inf)
        token = self.token.new_zeros(value.shape)
        value[row, slot] = top.values
        token[row, slot] = top.indices + (first + part * width)[:, None]
        value = torch.cat([self.value, value.flatten(1)], dim=1)
        token = torch.cat([self.token, token.flatten(1)], dim=1)
        self.value, order = value.topk(top_k, dim=-1)
        self.token = token.gather(1, order)


def _meet(met: Tensor, logits: Tensor, column: Tensor) -> None:
    """Keeps the logits of tokens aimed at, (row, aim), where they are among these (block, row, column)."""
    width = logits.shape[2]
    row, aim = ((column >= 0) & (column < len(logits) * width)).nonzero(as_tuple=True)
    place = column[row, aim]
    met[row, aim] = logits[place // width, row, place % width]


def _counted_again(
    read: Readout, product: _Product, stream: Tensor, following: Tensor, tracked: Tensor, doubtful: Tensor
) -> Readout:
    """Ranks anew, by whole logits, in rows where a logit aimed at was not the very one that the walk met.

    None, where a product sums every cell in the same order, as BLAS libraries do.
    """
    rows = doubtful.nonzero()[:, 0]
    if not len(rows):
        return read
    height = rows_at_a_time(product.head.out_features)
    parts = [
        read_logits(product.whole(stream[some]), following[some], 1, tracked) for some in torch.split(rows, height)
    ]
    again = joined(parts)
    return replace(
        read,
        next_rank=read.next_rank.index_copy(0, rows, again.next_rank),
        tracked_rank=read.tracked_rank.index_copy(0, rows, again.tracked_rank),
    )
