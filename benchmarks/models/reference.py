"""What transformers alone says of a text fed as a generation feeds it: attention by its eager functions, and logits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnlens.capture.kv_cache import give, taken


@dataclass
class Reference:
    """`attention`: for each layer, for each pass, (head, query, key); `logits` (token, vocabulary); `how` it came."""

    attention: list[list[Tensor]]
    logits: Tensor
    how: str


def reference_of(
    model: Any, ids: list[int], n_prompt: int, layers: list[str], *, positions: bool = False, cache: Any = None
) -> Reference:
    """Runs the prompt in one pass, then token by token; `layers` are the paths of those with attention.

    `positions`: tell the model where the new tokens stand, as a few need with a cache. `cache`: start from it.
    """
    model.set_attn_implementation("eager")
    steps: list[list[Tensor]] = []
    logits: list[Tensor] = []
    seen: list[tuple[str, Tensor]] = []
    paths = {id(module): path for path, module in model.named_modules()}
    first, reported = 0, True
    passes = [ids[:n_prompt], *[[token] for token in ids[n_prompt:-1]]]
    with torch.no_grad(), eager_recorded(lambda module, weights: seen.append((paths[id(module)], weights))):
        for piece in passes:
            seen.clear()
            extra = give(model, cache)
            if positions and first:
                extra["position_ids"] = torch.arange(first, first + len(piece))[None]
            out = model(torch.tensor([piece]), use_cache=True, output_attentions=True, **extra)
            cache = taken(out)
            first += len(piece)
            logits.append(out.logits[0])
            own = [weights[0] for weights in out.attentions or () if isinstance(weights, Tensor)]
            effective = [weights[0] for _, weights in seen]
            late = len(effective) == len(own) and any(
                float((a - b).abs().max()) > 1e-3 for a, b in zip(own, effective, strict=True)
            )
            if len(own) != len(layers) or late:
                reported = False
                own = [next(w[0] for path, w in seen if (path + ".").startswith(layer + ".")) for layer in layers]
            steps.append(own)
    attention = [[step[layer] for step in steps] for layer in range(len(layers))]
    how = "output_attentions" if reported else "eager functions"
    return Reference(attention, torch.cat(logits), how)


def kept(weights: Tensor, value: Tensor, output: Tensor) -> Tensor:
    """`weights` (1, head, query, key), each row times what makes it give the output."""
    mixed = weights @ value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    own = output.transpose(1, 2)
    if mixed.shape != own.shape:
        return weights
    size = mixed.square().sum(-1, keepdim=True)
    factor = torch.where(size > 1e-12, (own * mixed).sum(-1, keepdim=True) / size.clamp(min=1e-30), 1.0)
    return weights if bool(((factor - 1).abs() < 1e-3).all()) else weights * factor


def replayed(model: Any, ids: list[int], path: str, depth: int) -> Tensor:
    """Logits (token, vocabulary) of a depth by the model's own tail: its residual in the place of the last layer's."""
    layers = model.get_submodule(path)
    kept_stream: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        kept_stream.append(output[0] if isinstance(output, tuple) else output)

    def swap(_: Any, __: Any, output: Any) -> Any:
        return (kept_stream[0], *output[1:]) if isinstance(output, tuple) else kept_stream[0]

    handles = [layers[depth - 1].register_forward_hook(keep), layers[-1].register_forward_hook(swap)]
    try:
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits


@contextmanager
def eager_recorded(note: Callable[[torch.nn.Module, Tensor], None]) -> Iterator[None]:
    """Calls `note(module, weights)` at every call of an eager attention function of a modeling file."""
    changed = []
    file: Any
    for name, file in list(sys.modules.items()):
        own = getattr(file, "eager_attention_forward", None) if name.startswith("transformers.models") else None
        if own is None:
            continue

        def recording(module: torch.nn.Module, *args: Any, own: Any = own, **kwargs: Any) -> Any:
            output, weights = own(module, *args, **kwargs)
            if weights is not None:
                note(module, kept(weights, args[2] if len(args) > 2 else kwargs["value"], output))
            return output, weights

        changed.append((file, own))
        file.eager_attention_forward = recording
    try:
        yield
    finally:
        for file, own in changed:
            file.eager_attention_forward = own
