"""How long is what a head would write if it looked at one token alone? The norm of its value through the projection.

Kobayashi et al. 2020, "Attention is Not Only a Weight": a head adds Σ a[k] · f(x[k]) to the residual stream, and ‖f(x)‖
is as uneven as a: the tokens that are looked at most often have values near 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from attnlens.capture.carry import carry
from attnlens.capture.slots import Slots, spread
from attnlens.capture.tap import Call
from attnlens.store.lanes import runs
from attnlens.store.writer import CaptureWriter

BLOCK_BYTES = 8 << 20
"""Float32 values times Gram matrices that exist at a time."""


class ValueNorms:
    """Receives the values of each attention call and hands on their norms (layer, head, key)."""

    def __init__(
        self,
        writer: CaptureWriter,
        grams: Mapping[int, Tensor],
        gathered: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        """`grams`: float32 (kv_head, head of the group, feature, feature) of each layer, from `find_projections`.

        `gathered` joins the heads of all processes along an axis, where several hold the model.
        """
        self._writer = writer
        self._gathered = gathered
        self._slots = Slots()
        self._grams = grams
        self._waiting: list[tuple[int, int, Tensor]] = []
        self._stacked: dict[tuple[int, ...], Tensor] = {}

    def receive(self, call: Call, seen: int, n_new: int) -> None:
        """Values of the `n_new` last of `seen` tokens; one token's wait for `flush`, so that layers travel together."""
        value = call.value[0, :, call.value.shape[2] - n_new :]
        if n_new == 1:
            self._waiting.append((call.layer, seen - 1, value.clone()))
            return
        gram = self._grams[call.layer]
        norms = torch.empty(gram.shape[0] * gram.shape[1], n_new, device=value.device)
        height = max(1, BLOCK_BYTES // (4 * norms.shape[0] * value.shape[2]))
        for first in range(0, n_new, height):
            part = value[:, None, first : first + height]
            norms[:, first : first + height] = norms_of(part, gram).flatten(0, 1)
        self._send(slice(call.layer, call.layer + 1), seen - n_new, self._whole(norms[None]))

    def flush(self) -> None:
        """Sends the norms of tokens that wait: all layers of equal shape, and all tokens, in one product."""
        groups: dict[tuple[torch.Size, torch.device], list[tuple[int, int, Tensor]]] = defaultdict(list)
        for item in self._waiting:
            groups[self._grams[item[0]].shape, item[2].device].append(item)
        self._waiting.clear()
        for items in groups.values():
            layers = sorted({layer for layer, _, _ in items})
            tokens = sorted({token for _, token, _ in items})
            by_place = {(layer, token): value for layer, token, value in items}
            rows = torch.stack([torch.cat([by_place[layer, token] for token in tokens], dim=1) for layer in layers])
            size, at = self._slots.place(tokens[0], len(tokens))
            rows = spread(rows, size, at, axis=2)
            norms = norms_of(rows[:, :, None], self._stack(tuple(layers))).flatten(1, 2)[..., at]
            norms = self._whole(norms)
            for run, place in runs(layers):
                self._send(run, tokens[0], norms[place])

    def _stack(self, layers: tuple[int, ...]) -> Tensor:
        if layers not in self._stacked:
            self._stacked[layers] = torch.stack([self._grams[layer] for layer in layers])
        return self._stacked[layers]

    def _send(self, layers: slice, first: int, norms: Tensor) -> None:
        self._writer.lanes(first, layers, {"value_norm": carry(norms)})

    def _whole(self, norms: Tensor) -> Tensor:
        """Norms (layer, head, key) with the heads of all processes."""
        return norms if self._gathered is None else self._gathered(norms, 1)


def norms_of(value: Tensor, gram: Tensor) -> Tensor:
    """√(v G v^T), float32 (…, kv_head, head of the group, key), of values (…, kv_head, 1, key, feature)."""
    value = value.float()
    return (value @ gram).mul_(value).sum(dim=-1).clamp_(min=0).sqrt_()
