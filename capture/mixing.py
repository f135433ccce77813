"""Are reported weights what the values are mixed with? Tried out, layer by layer, whatever the layer's code looks like.

Every product of matrices that a layer computes is watched. The reported weights must be a factor of one. Then the layer
runs again with nothing in the place of that product, on the same stream and on one in which all tokens but the last are
others. If what it gives for the last token is the same, nothing but the product goes from token to token: no other
weights mix anything in.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.feeding import CallStyle
from attnlens.capture.forward import attempt
from attnlens.capture.override import eager_configuration, hooks_kept
from attnlens.capture.residual import stream_of
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import SelfCheck

PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.bmm.default})
"""What `matmul`, `@`, `einsum` and the like come down to."""
ROUNDED = 4e-3
"""How far a factor may be from the weights where it was cast to half precision."""
EXACT = 1e-5


def check_mixing(
    model: nn.Module,
    path: str,
    layers: nn.ModuleList,
    ids: Tensor,
    style: CallStyle,
    rows: Mapping[int, Tensor],
) -> SelfCheck:
    """Tries out each layer that reported weights, `rows` (head, query, key), for `ids` int64 (1, token).

    Raises:
        ModelError: a layer mixes its values with something else; the message names it.
    """
    errors: list[float] = []

    def before(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            errors.append(_try_out(f"{path}.{index}", module, args, kwargs, rows[index]))

        return hook

    with eager_configuration(model), hooks_kept(model):
        for index in rows:
            layers[index].register_forward_pre_hook(before(index), with_kwargs=True)
        attempt(model, ids, style)
    return SelfCheck(name="probe: attention × value", passed=True, value=max(errors, default=0.0), limit=EXACT)


def _try_out(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Tensor) -> float:
    """How far the factor of a product is from the weights (head, query, key) that the layer reports."""
    n_token = weights.shape[1]
    stream = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(stream, Tensor) or stream.dim() != 3:
        raise ModelError(f"{name}: it is not given a stream (1, token, feature), so what it mixes cannot be tried out")
    watch = _Products(weights)
    whole = _run(layer, args, kwargs, stream.shape, n_token, watch)
    if not watch.complete:
        raise ModelError(
            f"{name}: the attention weights that it reports are not what its values are mixed with: no product of "
            "matrices has them as a factor; it cannot be captured truthfully"
        )
    without = _run(layer, args, kwargs, stream.shape, n_token, _Products(weights, watch.found))
    others = _run(layer, args, kwargs, stream.shape, n_token, _Products(weights, watch.found), others=True)
    if relative_error(without, whole) <= 1e-6:
        raise ModelError(
            f"{name}: the attention weights that it reports are not what its values are mixed with: their product with "
            "the values changes nothing; it cannot be captured truthfully"
        )
    if not relative_error(others, without) <= _limit(layer, whole.dtype):
        raise ModelError(
            f"{name}: the attention weights that it reports are not all that its values are mixed with: something else "
            "goes from token to token; it cannot be captured truthfully"
        )
    return watch.error


def _limit(layer: nn.Module, dtype: torch.dtype) -> float:
    """How far two runs over the same last token may be apart.

    LLM.int8() chooses for all tokens together which features it rounds to 8 bits, so that other tokens change a little.
    """
    rounds = any(not parameter.is_floating_point() for parameter in layer.parameters())
    return tolerance(torch.float16 if rounds else dtype)


def _run(
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: torch.Size,
    n_token: int,
    watch: _Products,
    *,
    others: bool = False,
) -> Tensor:
    """What the layer gives for the last token (feature). `others`: all tokens before it are others.

    Everything that has the stream's shape is taken for one (some layers are given the stream before its norm, too).
    """
    axis = 0 if shape[1] == 1 and shape[0] >= n_token else 1  # one family has (token, 1, feature)

    def fresh(value: Any) -> Any:
        if isinstance(value, Cache):
            return copy.deepcopy(value)
        if not isinstance(value, Tensor) or value.shape != shape:
            return value
        if not others:
            return value.clone()  # a layer may write into what it is given
        last = torch.arange(shape[axis], device=value.device) == n_token - 1
        return torch.where(last.unsqueeze(1 - axis)[..., None], value, value.roll(1, dims=-1).flip(axis))

    with watch:
        output = layer.forward(*map(fresh, args), **{word: fresh(value) for word, value in kwargs.items()})
    given = output[0] if isinstance(output, tuple | list) else output
    stream = given if axis == 0 else stream_of(output, type(layer).__name__, shape[1])
    return stream.select(axis, n_token - 1).flatten()


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches products of matrices, in the order they are computed.

    found: numbers of the products of which the weights, or some heads of them, are a factor. nothing: numbers of
    products that are to give 0.
    """

    def __init__(self, weights: Tensor, nothing: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._nothing = frozenset(nothing)
        self._whole = weights
        self._heads: set[int] = set()
        self._number = -1
        self.found: list[int] = []
        self.error = 0.0

    @property
    def complete(self) -> bool:
        """Whether the weights of every head were a factor."""
        return len(self._heads) == len(self._whole)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in PRODUCTS:
            return result
        self._number += 1
        if self._nothing:
            return torch.zeros_like(result) if self._number in self._nothing else result
        heads = {head for factor in args[:2] for head in self._heads_of(factor)}
        if heads:
            self._heads |= heads
            self.found.append(self._number)
        return result

    def _heads_of(self, factor: Tensor) -> Iterator[int]:
        """The heads whose weights a factor holds, all of them in any order of axes, or a single one."""
        n_head = len(self._whole)
        limit = EXACT if factor.dtype in (torch.float32, torch.float64) else ROUNDED
        flat = factor.detach().float().flatten()
        if flat.numel() == self._whole.numel():
            orders = [self._whole.permute(order) for order in itertools.permutations(range(3))]
            errors = [float((flat - weights.flatten().to(flat.device)).abs().max()) for weights in orders]
            if min(errors) <= limit:
                self.error = max(self.error, min(errors))
                yield from range(n_head)
        elif flat.numel() * n_head == self._whole.numel():
            for head, weights in enumerate(self._whole):
                errors = [float((flat - one.flatten().to(flat.device)).abs().max()) for one in (weights, weights.T)]
                if min(errors) <= limit:
                    self.error = max(self.error, min(errors))
                    yield head
