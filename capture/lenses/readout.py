"""Numbers of a next-token distribution, from its logits and without ever building the whole distribution twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

LOGIT_BYTES = 16 << 20
"""Float32 logits (row, vocabulary) that may exist at a time; a few copies of them do while they are read."""


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What a lens keeps of one row (a residual of one depth and token).

    token: int32 (row, rank), most probable first; probability: float32 (row, rank), softmax over the full vocabulary;
    entropy: float32 (row), nats; next_rank: int32 (row), how many tokens are more probable than the one that came next,
    -1 where that is unknown; next_probability: float32 (row), NaN where unknown; tracked_rank int32 and
    tracked_probability float32 (row, tracked): the same two of tokens that are followed everywhere.
    """

    token: Tensor
    probability: Tensor
    entropy: Tensor
    next_rank: Tensor
    next_probability: Tensor
    tracked_rank: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    tracked_probability: Tensor = field(default_factory=lambda: torch.empty(0))


def rows_at_a_time(vocabulary_size: int) -> int:
    """How many rows of logits fit LOGIT_BYTES."""
    return max(1, LOGIT_BYTES // (4 * vocabulary_size))


def read_logits(logits: Tensor, following: Tensor, top_k: int, tracked: Tensor | None = None) -> Readout:
    """Reads logits (row, vocabulary); `following` int64 (row): the id that really came next, -1 for unknown.

    `tracked` int64 (tracked): ids that are followed.

    Entropy is log Σ exp(d) - Σ softmax(z)·d (Shannon 1948, in nats), with d = z - max z and z the logits. Nothing here
    waits for the device.
    """
    logits = logits.float()
    top = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    most = top.values[:, :1]
    known = following >= 0
    target = logits.gather(-1, following.clamp(min=0)[:, None])
    rank = (logits > target).sum(dim=-1, dtype=torch.int32)
    followed = logits[:, [] if tracked is None else tracked]
    ranks = [(logits > column[:, None]).sum(dim=-1, dtype=torch.int32) for column in followed.T]
    # A token that the model rules out (z = -inf) counts 0, where -inf times 0 would be NaN.
    below = torch.sub(logits, most).clamp_(min=torch.finfo(torch.float32).min)
    # The largest, exp(0) = 1, is left out of the sum: a long tail of small numbers would drown in it.
    weight = below.exp().scatter_(-1, top.indices[:, :1], 0.0)
    rest = weight.sum(dim=-1, keepdim=True)
    total = 1 + rest
    mean = weight.mul_(below).sum(dim=-1, keepdim=True) / total
    return Readout(
        token=top.indices.int(),
        probability=(top.values - most).exp() / total,
        entropy=(rest.log1p() - mean)[:, 0].clamp(min=0),
        next_rank=torch.where(known, rank, -1),
        next_probability=torch.where(known, ((target - most).exp() / total)[:, 0], torch.nan),
        tracked_rank=torch.stack(ranks, dim=1) if ranks else rank.new_empty(len(rank), 0),
        tracked_probability=(followed - most).exp() / total,
    )


def joined(parts: Sequence[Readout]) -> Readout:
    """Readings of consecutive rows as one."""
    return Readout(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Readout)}
    )
