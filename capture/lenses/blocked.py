"""The readings of `readout`, made while the product with the unembedding is still in the processor's cache.

A processor spends more time moving logits to memory and back than multiplying for them. Here the vocabulary is walked
in blocks of columns, and each block is used up at once. It gives three numbers that can be put together later as in
online softmax (Milakov and Gimelshein 2018): the largest logit m, and the sums of exp(d) and of exp(d)·d over all other
logits z, with d = z - m. Products are of d, not of z: z may be 100 and more, and its rounding would swallow an entropy
near 0. Sums of exp(d) are made of parts, which are added in float64: in one float32 sum a long tail of small numbers
would drown in the largest logit's own exp(0) = 1. The top k are looked for only in those parts of a block whose largest
logit is among the k largest so far. Each core has a thread of its own that takes blocks as it gets on: threads that
share every operation wait for each other at its end, and for whoever else has one of the cores. What is as large as a
block is allocated once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attnlens.capture.lenses.readout import Readout, joined, read_logits, rows_at_a_time

BLOCK_ROWS = 512
BLOCK_COLUMNS = 512
"""The narrowest block: with BLOCK_ROWS its logits are 1 MiB, about what a core can keep to itself."""
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
        and not has_hooks(head)
        and "forward" not in vars(head)  # a tensor-parallel head, of which only a part is here
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether more happens than the module says when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))


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
    tracked = following[:0] if tracked is None else tracked
    target = torch.cat([following[:, None], tracked.expand(len(stream), -1)], dim=1)
    product = _Product(head, scale, softcap)
    threads = crew()
    aim = threads.one(product.own, stream, following.clamp(min=0), tracked)
    walk = _Walk(stream, product, target, aim, top_k)
    runs = iter(range(0, walk.n_block, BLOCKS_KEPT))
    best = _Best.joined(threads.all(lambda: walk.take(runs)))
    most, total, entropy = walk.distribution()
    known = target >= 0
    rank = torch.where(known, walk.beaten.sum(dim=0).T.int(), -1)
    probability = torch.where(known, (walk.met - most - total).exp(), torch.nan)
    read = Readout(
        token=best.token.int(),
        probability=(best.value - most - total).exp(),
        entropy=entropy,
        next_rank=rank[:, 0],
        next_probability=probability[:, 0],
        tracked_rank=rank[:, 1:],
        tracked_probability=probability[:, 1:],
    )
    doubtful = (known & (walk.met != aim)).any(dim=1)
    return _counted_again(read, product, stream, following, tracked, doubtful)


class _Walk:
    """What is learnt of some rows while blocks of the vocabulary go by, in any order and in several threads."""

    def __init__(self, stream: Tensor, product: _Product, target: Tensor, aim: Tensor, top_k: int) -> None:
        n_row, self._size = len(stream), product.head.out_features
        self._stream, self._product, self._target, self._aim = stream, product, target, aim
        self._width = min(self._size, _width(n_row))
        self._top_k = min(top_k, self._size)
        self.n_block = -(-self._size // self._width)
        self._most, self._largest, self._mean = (torch.empty(self.n_block, n_row) for _ in range(3))
        self._part = PART_COLUMNS if self._width % PART_COLUMNS == 0 else self._width
        self._sums = torch.zeros(self.n_block, n_row, self._width // self._part)
        """Probabilities of a block's softmax, added up by parts (block, row, part)."""
        self.beaten = torch.empty(self.n_block, target.shape[1], n_row)
        """How many logits of a block are above those aimed at (block, aim, row)."""
        self.met = torch.full(target.shape, torch.nan)
        """The logits aimed at (row, aim), as the walk met them."""

    def take(self, runs: Iterator[int]) -> _Best:
        """Walks runs of blocks, each named by its first, as long as there are some; returns the best of them."""
        with torch.no_grad():
            return self._take(runs)

    def _take(self, runs: Iterator[int]) -> _Best:
        n_row, width = len(self._stream), self._width
        best = _Best(n_row, self._top_k)
        kept = torch.empty(min(BLOCKS_KEPT, self.n_block), n_row, width)
        parts = kept.view(len(kept), n_row, -1, self._part)
        peaks, scratch = torch.empty(parts.shape[:3]), torch.empty(2, n_row, width)
        for begin in runs:
            blocks = range(begin, min(begin + BLOCKS_KEPT, self.n_block))
            for place, block in enumerate(blocks):
                first, last = block * width, min(self._size, (block + 1) * width)
                logits, (below, room) = kept[place], scratch
                if last - first < width:  # the last block: tensors of its own, because only whole ones are contiguous
                    logits, below, room = torch.empty(3, n_row, last - first)
                self._product.block(self._stream, first, last, out=logits)
                if last - first < width:
                    kept[place].fill_(-torch.inf)[:, : last - first] = logits
                torch.amax(parts[place], dim=-1, out=peaks[place])
                torch.amax(peaks[place], dim=-1, out=self._most[block])
                torch.sub(logits, self._most[block][:, None], out=below)
                torch.softmax(below, dim=-1, out=room)
                torch.amax(room, dim=-1, out=self._largest[block])
                self._add_up(room, block)
                torch.sum(room.mul_(below), dim=-1, out=self._mean[block])
                for column, count in zip(self._aim.T, self.beaten[block], strict=True):
                    torch.sum(torch.gt(logits, column[:, None], out=room), dim=-1, out=count)
            best.add(parts[: len(blocks)], peaks[: len(blocks)], begin * width)
            _meet(self.met, kept[: len(blocks)], self._target - begin * width)
        return best

    def _add_up(self, room: Tensor, block: int) -> None:
        """Adds up the probabilities `room` (row, column) of a block."""
        sums = self._sums[block]
        if room.shape[1] == sums.shape[1] * self._part > self._part:
            torch.sum(room.view(len(room), -1, self._part), dim=-1, out=sums)
        else:  # the last block, or the only one: there is time to add in float64
            sums[:, 0] = room.sum(dim=-1, dtype=torch.float64)

    def distribution(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the whole vocabulary, once all blocks were walked: largest logit (row, 1), logsumexp less that (row, 1),
        and entropy (row).

        With m that largest logit and s the logsumexp of z - m, and for each block b its largest logit m_b, R_b the sum
        of exp(z - m_b) over its other logits and D_b that of exp(z - m_b)·(z - m_b), the logsumexp is
        s = log Σ exp(m_b - m)(1 + R_b) and the entropy s - Σ exp(m_b - m - s)((m_b - m)(1 + R_b) + D_b), a sum of two
        numbers that are not negative, so that no digit is lost. There are few of them, in float64.
        """
        most = self._most.amax(dim=0)
        below = self._most.double() - most
        largest = self._largest.double()  # what softmax divided by drops out here, and with it the rounding of its sum
        rest = (self._sums.double().sum(dim=-1) - largest) / largest
        mean = self._mean.double() / largest
        total = (below + rest.log1p()).logsumexp(dim=0)
        entropy = total - ((below - total).exp() * (below * (1 + rest) + mean)).sum(dim=0)
        return most[:, None], total[:, None].float(), entropy.float().clamp(min=0)


class _Crew:
    """A thread for each that torch would use.

    Torch may still spread what they do, over teams that give way to the model's; threads that never do keep it waiting.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.held = 0
        """Who counts on these threads: no others are made meanwhile."""
        self._beside = False
        self._lock = threading.Lock()
        self._joining: Callable[[], None] | None = None
        self._threads = ThreadPoolExecutor(count, "attnlens-lens", initializer=torch.set_num_threads, initargs=(1,))
        ready = threading.Barrier(count)
        list(self._threads.map(lambda _: ready.wait(), range(count)))
        torch.set_num_threads(count)  # a setting of every thread, whose default for later ones is the last made

    @property
    def beside(self) -> bool:
        """Whether the model computes at the same time: then one core is left to it. Counts at once for what runs."""
        return self._beside

    @beside.setter
    def beside(self, value: bool) -> None:
        with self._lock:
            if self._beside and not value and self.count > 1 and self._joining is not None:
                self._joining()
            self._beside = value

    def one(self, work: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """What `work` returns, computed by one of the threads."""
        return self._threads.submit(work, *given).result()

    def all(self, work: Callable[[], _Best]) -> list[_Best]:
        """What `work` returns in each thread; they share it among themselves, and another may join at any time."""
        began: list[Future[_Best]] = []
        with self._lock:
            for _ in range(max(1, self.count - self._beside)):
                began.append(self._threads.submit(work))
            self._joining = lambda: began.append(self._threads.submit(work))
        done: list[_Best] = []
        while len(done) < len(began):
            done.append(began[len(done)].result())
        with self._lock:
            self._joining = None
        return done + [late.result() for late in began[len(done) :]]


_made: _Crew | None = None


def crew() -> _Crew:
    """The threads that walk."""
    global _made
    count = torch.get_num_threads()
    if _made is None or (_made.count != count and not _made.held):
        _made = _Crew(count)
    return _made


def _width(n_row: int) -> int:
    """Columns of a block: fewer for more rows, so that its logits stay in the cache."""
    width = BLOCK_COLUMNS
    while width < WIDEST_COLUMNS and 2 * width * n_row <= BLOCK_COLUMNS * BLOCK_ROWS:
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

    @staticmethod
    def joined(parts: list[_Best]) -> _Best:
        """The best of all."""
        value, order = torch.cat([part.value for part in parts], dim=1).topk(parts[0].value.shape[1], dim=-1)
        best = _Best(*value.shape)
        best.value, best.token = value, torch.cat([part.token for part in parts], dim=1).gather(1, order)
        return best

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
