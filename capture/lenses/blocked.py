"""The readings of `readout`, made while the product with the unembedding is still in the processor's cache.

A processor spends more time moving logits to memory and back than multiplying for them. Here the vocabulary is walked
in blocks of columns, and each block is used up at once: running maximum and sums as in online softmax (Milakov and
Gimelshein 2018), a running top k, and a count of the tokens that beat the one that really came next.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnlens.capture.lenses.readout import Readout

BLOCK_COLUMNS = 1024
BLOCK_ROWS = 256
_LOWEST = torch.finfo(torch.float32).min
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
    stream: Tensor, head: nn.Linear, following: Tensor, top_k: int, *, scale: float, softcap: float | None
) -> Readout:
    """As `read_logits` of cap(scale · head(stream)), for stream (row, feature) that is ready for the head.

    `following` int64 (row): the id that really came next, -1 for unknown.
    """
    n_row, size = len(stream), head.out_features
    width = min(BLOCK_COLUMNS, size)
    product, scratch = torch.empty(n_row, width), torch.empty(n_row, width)
    aim = _finish(_aim(stream, head, following.clamp(min=0)), scale, softcap)
    met = aim.clone()
    best = torch.full((n_row, min(top_k, size)), -torch.inf)
    best_token = torch.zeros(best.shape, dtype=torch.int64)
    most = torch.full((n_row, 1), _LOWEST)
    total, weighted, beaten = torch.zeros(n_row, 1), torch.zeros(n_row, 1), torch.zeros(n_row)
    for first in range(0, size, width):
        last = min(first + width, size)
        if last - first < width:  # the last block: buffers of its own, because only whole ones are contiguous
            product, scratch = product.new_empty(n_row, last - first), scratch.new_empty(n_row, last - first)
        _multiply(stream, head, first, last, product)
        logits = _finish(product, scale, softcap)
        highest = logits.amax(dim=-1, keepdim=True)
        _keep_best(best, best_token, logits, highest, first)
        beaten += torch.gt(logits, aim, out=scratch).sum(dim=-1)
        _meet(met, beaten, logits, aim, following - first)
        highest = torch.maximum(most, highest)
        shrink = (most - highest).exp_()
        torch.sub(logits, highest, out=scratch).exp_()
        total.mul_(shrink).add_(scratch.sum(dim=-1, keepdim=True))
        weighted.mul_(shrink).add_(scratch.mul_(logits).sum(dim=-1, keepdim=True))
        most = highest
    logsum = most + total.log()
    known = following >= 0
    return Readout(
        token=best_token.int(),
        probability=(best - logsum).exp(),
        entropy=(logsum - weighted / total)[:, 0].clamp(min=0),
        next_rank=torch.where(known, beaten.int(), torch.full_like(beaten, -1, dtype=torch.int32)),
        next_probability=torch.where(known, (met - logsum)[:, 0].exp(), torch.full_like(beaten, torch.nan)),
    )


def _multiply(stream: Tensor, head: nn.Linear, first: int, last: int, out: Tensor) -> None:
    weight, bias = head.weight[first:last].T, _bias(head)
    if bias is None:
        torch.mm(stream, weight, out=out)
    else:
        torch.addmm(bias[first:last], stream, weight, out=out)


def _bias(head: nn.Linear) -> Tensor | None:
    bias: Tensor | None = head.bias  # torch's own annotation forgets None
    return bias


def _aim(stream: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """Logit (row, 1) of one token a row."""
    aim = (stream * head.weight[target]).sum(dim=-1, keepdim=True)
    bias = _bias(head)
    return aim if bias is None else aim + bias[target][:, None]


def _finish(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits scaled and capped, -inf made finite, in place."""
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits.clamp_(min=_LOWEST)


def _keep_best(best: Tensor, best_token: Tensor, logits: Tensor, highest: Tensor, first: int) -> None:
    """Merges a block into the running top k, only in rows where it holds something better."""
    rows = (highest[:, 0] > best[:, -1]).nonzero()[:, 0]
    if not len(rows):
        return
    top = logits[rows].topk(min(best.shape[1], logits.shape[1]), dim=-1)
    values = torch.cat([best[rows], top.values], dim=1)
    tokens = torch.cat([best_token[rows], top.indices + first], dim=1)
    kept = values.topk(best.shape[1], dim=-1)
    best[rows], best_token[rows] = kept.values, tokens.gather(1, kept.indices)


def _meet(met: Tensor, beaten: Tensor, logits: Tensor, aim: Tensor, column: Tensor) -> None:
    """Where the aimed-at token is in this block: keeps its logit, and takes back its count if rounding put it above."""
    rows = ((column >= 0) & (column < logits.shape[1])).nonzero()[:, 0]
    own = logits[rows, column[rows]]
    met[rows, 0] = own
    beaten[rows] -= (own > aim[rows, 0]).float()
