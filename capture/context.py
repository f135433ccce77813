"""How many tokens a model can take. Only tables of positions are walls; what a configuration states is not.

A table with a row for each position is seen by what indexes it: numbers that grow by one from token to token. That is
watched in a skeleton of the model, its class without weights, so that it is the same for a plan and for a capture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnlens.capture.configuration import text_config

LENGTHS = (11, 12)
"""Tokens of the passes that are watched. What has another size in the other pass is no table."""
UNNAMED = "a table of positions"
LONGEST_TRIED = 4096
"""Tokens of a pass that tries whether a table was made for the text alone."""


@dataclass(frozen=True, kw_only=True)
class Wall:
    """The most tokens that a model can take, and what there are no more of."""

    n_token: int
    what: str


@dataclass
class Context:
    """What is known of a model's context.

    tables: walls that are tables of positions. stated: what the configuration says, and by which name.
    """

    tables: list[Wall]
    stated: tuple[str, int] | None
    skeleton: nn.Module | None
    _longest: int = 0
    _walls: dict[int, Wall] = field(default_factory=dict)

    def wall(self, length: int) -> Wall | None:
        """What ends a text of `length` tokens, if anything does."""
        wall = min(self.tables, key=lambda one: one.n_token, default=None)
        if wall is not None and wall.n_token < length:
            length = wall.n_token
        else:
            wall = None
        if self._longest < length and self.skeleton is not None:
            fitting = _longest_fitting(self.skeleton, length)
            if fitting < length:
                self.tables.append(Wall(n_token=fitting, what="its masks or biases end there"))
                return self.tables[-1]
            self._longest = length
        return wall


_known: WeakKeyDictionary[nn.Module, Context] = WeakKeyDictionary()


def context_of(model: nn.Module) -> Context:
    """The context of a model; worked out once."""
    if model not in _known:
        with torch.no_grad():
            tables, skeleton = _examined(model)
        _known[model] = Context(tables=tables, stated=_stated(model), skeleton=skeleton)
    return _known[model]


def _examined(model: nn.Module) -> tuple[list[Wall], nn.Module | None]:
    """Tables of positions, and a skeleton of the model; of a class that has none, the model itself is watched."""
    for n_layer in (1, None):
        try:
            skeleton = _skeleton(model, n_layer)
            return _tables(skeleton, hollow=True), skeleton
        except Exception:  # noqa: BLE001 - whatever a foreign constructor raises
            continue
    try:
        return _tables(model, hollow=False), None
    except Exception:  # noqa: BLE001 - what does not run at all is refused by the probe
        return [], None


def _stated(model: nn.Module) -> tuple[str, int] | None:
    config = text_config(model)
    for name in ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return name, value
    return None


# A class without its weights


def _skeleton(model: nn.Module, n_layer: int | None) -> nn.Module:
    """The model's class with `n_layer` layers (None: all) and no weights, on torch's device "meta".

    Raises:
        Exception: whatever its constructor raises where it needs numbers.
    """
    from transformers import PreTrainedModel

    own: Any = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    config = copy.deepcopy(own.config)
    if n_layer is not None:
        _shorten(config, n_layer)
    with torch.device("meta"):
        built: Any = type(own)._from_config(config, attn_implementation="eager").eval()
    built.config.pad_token_id = None  # for which some models search the ids to warn
    skeleton: nn.Module = built
    return skeleton


def _shorten(config: Any, n_layer: int) -> None:
    text = config.get_text_config()
    text.num_hidden_layers = n_layer
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:n_layer]


def _pass(model: nn.Module, n_token: int) -> None:
    """Runs tokens of one kind, none of which is padding, so that nothing but positions tells them apart."""
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    padding = {module.padding_idx for module in model.modules() if isinstance(module, nn.Embedding)}
    ids = torch.full((1, n_token), next(token for token in (5, 3, 4) if token not in padding), device=device)
    model(input_ids=ids, use_cache=False)


def _longest_fitting(skeleton: nn.Module, length: int) -> int:
    """The longest text of up to `length` tokens that runs; `length` if this class does not run without numbers."""

    def fits(n_token: int) -> bool:
        try:
            _pass(skeleton, n_token)
        except Exception:  # noqa: BLE001 - any model code may run here
            return False
        return True

    with torch.no_grad():
        if fits(length) or not fits(LENGTHS[0]):
            return length
        low, high = LENGTHS[0], length
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# Tables of positions


@dataclass(frozen=True, kw_only=True)
class _Look:
    """Something was indexed by positions: `size` rows, the first of which that was asked for is `first`."""

    name: str
    size: int
    first: int


class _Watch(TorchFunctionMode):
    """Notes what is indexed by numbers that grow by one from token to token.

    `hollow`: products with weights are not computed, of which there are none.
    """

    def __init__(self, model: nn.Module, n_token: int, *, hollow: bool) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self._n_token = n_token
        self._hollow = hollow
        self.looks: list[_Look] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS:
            for table, axis, index in _LOOKS[func](*args, **kwargs):
                self._note(table, axis, index)
        if self._hollow and func in _PRODUCTS:
            given, width = _PRODUCTS[func](*args, **kwargs)
            return given.new_zeros((*given.shape[:-1], width))
        return func(*args, **kwargs)

    def _note(self, table: Any, axis: int, index: Any) -> None:
        if (
            not isinstance(table, Tensor)
            or not isinstance(index, Tensor)
            or index.dtype not in (torch.int64, torch.int32)
        ):
            return
        if index.numel() == self._n_token:
            along = index.flatten()
        elif index.dim() == table.dim() and index.shape[axis] == self._n_token:  # gather: the same for every feature
            along = index.transpose(axis, 0).flatten(1)[:, 0]
        else:
            return
        positions = along.tolist()
        if positions == list(range(positions[0], positions[0] + self._n_token)):
            name = self._names.get(id(table), UNNAMED)
            self.looks.append(_Look(name=name, size=table.shape[axis], first=positions[0]))


def _of_item(table: Any, index: Any) -> Iterator[tuple[Any, int, Any]]:
    for axis, part in enumerate(index if isinstance(index, tuple) else (index,)):
        yield table, axis, part


def _of_embedding(index: Any, weight: Any, *_: Any, **__: Any) -> Iterator[tuple[Any, int, Any]]:
    yield weight, 0, index


def _of_axis(table: Any, dim: int, index: Any, **_: Any) -> Iterator[tuple[Any, int, Any]]:
    yield table, dim, index


_LOOKS: dict[Any, Callable[..., Iterator[tuple[Any, int, Any]]]] = {
    nn.functional.embedding: _of_embedding,
    Tensor.__getitem__: _of_item,
    torch.gather: _of_axis,
    Tensor.gather: _of_axis,
    torch.index_select: _of_axis,
    Tensor.index_select: _of_axis,
}
_PRODUCTS: dict[Any, Callable[..., tuple[Tensor, int]]] = {
    nn.functional.linear: lambda given, weight, *_, **__: (given, weight.shape[0]),
    torch.addmm: lambda _, given, weight, **__: (given, weight.shape[1]),
}


def _tables(model: nn.Module, *, hollow: bool) -> list[Wall]:
    """The tables that are indexed by positions, and how many tokens have a row in each."""
    first, second = (_looks(model, n_token, hollow=hollow) for n_token in LENGTHS)
    return [
        Wall(
            n_token=look.size - look.first, what=f"{look.name} has {look.size} rows, the first token's is {look.first}"
        )
        for look in first
        if look in second and not (_made_for_the_text(model, look, hollow=hollow) or (hollow and _grows(model, look)))
    ]


def _looks(model: nn.Module, n_token: int, *, hollow: bool) -> list[_Look]:
    if hollow:
        model = copy.deepcopy(model)
        flatten(model)
    with _Watch(model, n_token, hollow=hollow) as watch:
        _pass(model, n_token)
    return list(dict.fromkeys(watch.looks))


def _made_for_the_text(model: nn.Module, look: _Look, *, hollow: bool) -> bool:
    """Whether a table that is neither weight nor buffer has more rows in a pass over one token more than it has room
    for: it was put together for as many tokens as there were (Reformer's axial positions)."""
    longer = look.size - look.first + 1
    if look.name != UNNAMED or longer > LONGEST_TRIED:
        return False
    try:
        return any(other.name == UNNAMED and other.size > look.size for other in _looks(model, longer, hollow=hollow))
    except Exception:  # noqa: BLE001 - any model code may run here
        return False


def _grows(skeleton: nn.Module, look: _Look) -> bool:
    """Whether a table, which is no weight, gets more rows when a longer text asks for them."""
    if look.name in dict(skeleton.named_parameters()):
        return False
    sizes: list[int] = []
    longer = copy.deepcopy(skeleton)
    with _Sizes(sizes.append, longer, look.name):
        try:
            _pass(longer, look.size - look.first + 1)
        except Exception:  # noqa: BLE001 - any model code may run here
            return False
    return bool(sizes) and min(sizes) > look.size


class _Sizes(TorchFunctionMode):
    """Tells how many rows a buffer has whenever something is looked up."""

    def __init__(self, tell: Callable[[int], None], model: nn.Module, name: str) -> None:
        super().__init__()
        self._tell, self._model, self._name = tell, model, name

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS:
            table = dict(self._model.named_buffers()).get(self._name)
            for looked, axis, _ in _LOOKS[func](*args, **kwargs):
                if table is not None and looked is table:
                    self._tell(table.shape[axis])
        return func(*args, **kwargs)


def flatten(model: nn.Module) -> None:
    """Puts a model without numbers on the CPU, every weight a single number that is repeated; positions are counted."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            flat = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            module._parameters[name] = nn.Parameter(flat, requires_grad=False)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
            if name == "position_ids":
                module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape)
