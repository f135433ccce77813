"""What transformers alone says of a text fed as a generation feeds it: attention by its eager functions, and logits."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnlens.capture.kv_cache import give, taken


@dataclass
class Reference:
    """What a run of transformers' own says of a text.

    attention: for each layer, for each pass, (head, query, key) of the new queries. logits: (token, vocabulary).
    ids: prompt and what was generated. how: where the attention came from. trouble: why `generate` could not be run.
    """

    attention: list[list[Tensor]]
    logits: Tensor
    ids: list[int]
    how: str
    trouble: str = ""


def reference_of(model: Any, ids: list[int], n_new: int, layers: list[str], *, cache: Any = None) -> Reference:
    """Lets transformers' greedy `generate` go on from `ids`; `layers` are the paths of those with attention.

    Where a class cannot generate, the prompt runs in one pass and then each of the likeliest tokens, from `cache`.
    """
    model.set_attn_implementation("eager")
    try:
        with _Recorder(model, layers) as record:
            found = generate(model, ids, n_new)
        return record.reference(found)
    except Exception as error:  # noqa: BLE001 - whatever a class that cannot generate raises
        trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"
    found = list(ids)
    with torch.no_grad(), _Recorder(model, layers) as record:
        for step in range(n_new):
            piece = torch.tensor([found[-1:] if step else found])
            out = model(input_ids=piece, use_cache=True, output_attentions=True, **give(model, cache))
            cache = taken(out)
            found.append(int(out.logits[0, -1].argmax()))
    return record.reference(found, trouble)


def one_pass_of(model: Any, ids: list[int], layers: list[str]) -> Reference:
    """The same of a text that is all there, without a cache."""
    model.set_attn_implementation("eager")
    with _Recorder(model, layers) as record:
        one_pass(model, ids, output_attentions=True)
    return record.reference(ids)


def generate(model: Any, ids: list[int], n_new: int, **options: Any) -> list[int]:
    """transformers' greedy text, prompt included; every token of the prompt is seen, and its logits are made."""
    prompt = torch.tensor([ids])
    if hasattr(model.config, "num_logits_to_keep"):
        model.config.num_logits_to_keep = 0
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 0
    with torch.no_grad():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=n_new,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
            **options,
        )
    text: list[int] = out.sequences[0].tolist()
    return text


def one_pass(model: Any, ids: list[int], **options: Any) -> Tensor:
    """Logits (token, vocabulary) of one pass without a cache, told what `generate` tells it."""
    logits: list[Tensor] = []
    handle = model.register_forward_hook(lambda _, __, out: logits.append(out.logits[0]))
    try:
        generate(model, ids, 1, use_cache=False)
    except Exception:  # noqa: BLE001 - a class that cannot generate
        logits.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]), use_cache=False, **options)
    finally:
        handle.remove()
    return logits[0]


class _Recorder(AbstractContextManager["_Recorder"]):
    """Keeps attention and logits of every pass of a model: what it reports, or what its eager functions gave."""

    def __init__(self, model: Any, layers: list[str]) -> None:
        self._model, self._layers = model, layers
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._seen: list[tuple[str, Tensor]] = []
        self._steps: list[list[Tensor]] = []
        self._logits: list[Tensor] = []
        self._reported = True
        self._stack = ExitStack()

    def __enter__(self) -> _Recorder:
        self._stack.enter_context(
            eager_recorded(lambda module, weights: self._seen.append((self._paths[id(module)], weights)))
        )
        self._stack.callback(self._model.register_forward_hook(self._keep).remove)
        return self

    def __exit__(self, *trouble: object) -> None:
        self._stack.close()

    def _keep(self, model: Any, args: Any, out: Any) -> None:
        own = [weights[0] for weights in out.attentions or () if isinstance(weights, Tensor)]
        effective = [weights[0] for _, weights in self._seen]
        late = len(effective) == len(own) and any(
            float((a - b).abs().max()) > 1e-3 for a, b in zip(own, effective, strict=True)
        )
        if len(own) != len(self._layers) or late:
            self._reported = False
            own = [
                next(w[0] for path, w in self._seen if (path + ".").startswith(layer + ".")) for layer in self._layers
            ]
        new = slice(-1, None) if self._steps else slice(None)  # others are fed again
        self._steps.append([weights[:, new] for weights in own])
        self._logits.append(out.logits[0, new])
        self._seen.clear()

    def reference(self, ids: list[int], trouble: str = "") -> Reference:
        """What was kept."""
        attention = [[step[layer] for step in self._steps] for layer in range(len(self._layers))]
        how = "output_attentions" if self._reported else "eager functions"
        return Reference(attention, torch.cat(self._logits), ids, how, trouble)


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
        return one_pass(model, ids)
    finally:
        for handle in handles:
            handle.remove()


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
