"""Attention by torch's fused kernels, where they are the same function as the model's own, and weights without a copy.

Nothing of size T² is made: a prompt runs as one causal call, other masks go block of queries by block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnlens.capture.sight import first_seen
from attnlens.schemas.metadata import LayerInfo

MASKED_ROWS = 256


def fused_output(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, info: LayerInfo, seen: int) -> Tensor:
    """Output (1, query, head, feature) of attention whose mask is what `info` says.

    Args:
        query: (1, head, query, feature), the last tokens of the timeline.
        key: (1, kv_head, key, feature), the last ones, too.
        value: (1, kv_head, key, value_feature), no wider than the keys.
        mask: (1, 1 or head, query, key), None for a single query that sees all keys.
        info: kind, window and scaling of the layer, proven.
        seen: tokens of the timeline.
    """
    n_head, n_row, n_key = query.shape[1], query.shape[2], key.shape[2]
    group, width = n_head // key.shape[1], value.shape[3]
    if width < key.shape[3]:  # the kernels want values as wide as keys
        value = pad(value, (0, key.shape[3] - width))
    first_query, first_key = seen - n_row, seen - n_key
    if n_row == 1:
        start = first_seen(info, first_query) - first_key
        packed = query.reshape(1, n_head // group, group, query.shape[3])
        output = scaled_dot_product_attention(packed, key[:, :, start:], value[:, :, start:], scale=info.scaling)
        output = output.reshape(1, n_head, 1, -1)
    elif n_row == n_key and not first_seen(info, seen - 1):
        output = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=info.scaling, enable_gqa=group > 1
        )
    else:
        assert mask is not None
        output = query.new_empty((1, n_head, n_row, value.shape[3]))
        for begin in range(0, n_row, MASKED_ROWS):
            end = min(begin + MASKED_ROWS, n_row)
            columns = slice(first_seen(info, first_query + begin) - first_key, n_key - n_row + end)
            output[:, :, begin:end] = scaled_dot_product_attention(
                query[:, :, begin:end],
                key[:, :, columns].repeat_interleave(group, dim=1),
                value[:, :, columns].repeat_interleave(group, dim=1),
                attn_mask=mask[:, :, begin:end, columns],
                scale=info.scaling,
            )
    return output[..., :width].transpose(1, 2).contiguous()


def plain_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Softmax attention (head, query, key) in float32, without soft-cap or sinks; keys are shared, not repeated.

    Args:
        query: (head, query, feature).
        key: (kv_head, key, feature).
        mask: float (1 or head, query, key) that is added, bool that says what is seen, or None for none.
        scaling: of the scores.
    """
    n_head, n_row, features = query.shape
    grouped = query.float().reshape(key.shape[0], -1, features)
    scores = torch.matmul(grouped, key.float().transpose(1, 2)).view(n_head, n_row, key.shape[1])
    scores.mul_(scaling)
    if mask is not None:
        if mask.dtype == torch.bool:
            scores.masked_fill_(~mask, torch.finfo(torch.float32).min)
        else:
            scores.add_(mask)
    return scores.softmax(dim=-1)
