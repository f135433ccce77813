"""What transformers does with every tensor of a checkpoint, seen while it loads.

`from_pretrained` reports tensors that no part of the model takes, but only after its classes have struck those from the
report that they want to hear nothing of, and under the names they would have in the model. So the one function through
which every checkpoint goes is watched: what goes in (names, shapes and dtypes as they are in the files) and what it
says before anything is struck out.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""torch's names of the dtypes in a safetensors header."""
FLOATS = ("float64", "float32", "float16", "bfloat16")
COMPUTED = re.compile(r"(^|[._])(inv_freq|(cos|sin)_cached|(masked_)?bias|causal_mask|position_ids|version)$")
"""Names of tensors that may be buffers which a model computes itself: only their values can tell."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it is in the checkpoint. `target`: its name in the model, whether or not it is there.

    `value` is read only where a tensor is unused and may be a buffer that the model computes itself.
    """

    target: str
    dtype: str
    shape: tuple[int, ...]
    value: Any = None


@dataclass
class Seen:
    """One checkpoint going into a model.

    Attributes:
        model: the model.
        expected: dtype and shape of every tensor in the model, by name.
        stored: every tensor of the checkpoint, by its name there.
        unused: names of those that no part of the model takes.
        twins: pairs of tensors that go to one place and differ.
        absent: names of the model's tensors that the checkpoint lacks, before any is tied to another.
        info: transformers' own report; it goes on changing until the model is loaded.
        quantizer: what unpacks quantized weights; None for plain ones.
    """

    model: Any
    expected: dict[str, tuple[str, tuple[int, ...]]]
    stored: dict[str, Stored]
    unused: list[str]
    twins: list[tuple[str, str]]
    absent: frozenset[str]
    info: Any
    quantizer: Any


@dataclass
class Watch:
    """Every checkpoint that was loaded, in order: a model's, then those of its adapters."""

    seen: list[Seen] = field(default_factory=list)


@contextmanager
def watching() -> Iterator[Watch]:
    """Watch what transformers loads inside the block.

    Loading raises TypeError if an entry of the checkpoint is no tensor, ValueError if tensors that make one weight
    cannot be put together.
    """
    from transformers import modeling_utils

    original = modeling_utils.convert_and_load_state_dict_in_model
    signature = inspect.signature(original)
    watch = Watch()

    def watched(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        model, state, settings = given["model"], given["state_dict"], given["load_config"]
        _require_tensors(state)
        expected = {name: (_dtype(tensor), tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
        result = original(*args, **kwargs)
        _require_converted(result[0])
        watch.seen.append(_look(model, expected, state, settings, result[0]))
        return result

    modeling_utils.convert_and_load_state_dict_in_model = watched
    try:
        yield watch
    finally:
        modeling_utils.convert_and_load_state_dict_in_model = original


def _require_tensors(state: Mapping[str, Any]) -> None:
    """A file of torch.save may hold anything by a name, such as the whole state of a training run."""
    for name, tensor in state.items():
        if not hasattr(tensor, "dtype") and not hasattr(tensor, "get_dtype"):
            kind = type(tensor).__name__
            raise TypeError(f"{name} in its weights is of type {kind}, and every entry there must be a tensor")


def _require_converted(info: Any) -> None:
    """transformers tells what it could not put together in a report of its own, and points to that."""
    errors = getattr(info, "conversion_errors", None) or {}
    for name, said in errors.items():
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        cause = said.rpartition("\nError")[0] or said  # a traceback, what the error says, and a line about the place
        raise ValueError(f"its tensors for {name} do not fit together{more}: {cause.strip().splitlines()[-1]}")


def _look(model: Any, expected: dict[str, Any], state: Mapping[str, Any], settings: Any, info: Any) -> Seen:
    mapping = settings.weight_mapping or []
    targets = _targets(state, model, expected, mapping)
    buffers = {name for name, _ in model.named_buffers()} - set(expected)
    stored, unused = {}, []
    for name, tensor in state.items():
        target, _ = targets[name]
        value = None
        if target not in expected:
            unused.append(name)
            value = _read(tensor) if target in buffers or COMPUTED.search(name) else None
        stored[name] = Stored(target, _dtype(tensor), _shape(tensor), value)
    # What it says itself comes on top: a name that we did not foresee stands for itself.
    foreseen = {alias for name in unused for alias in _aliases(*targets[name], mapping)}
    unused += sorted(set(info.unexpected_keys) - foreseen)
    return Seen(
        model=model,
        expected=expected,
        stored=stored,
        unused=unused,
        twins=[pair for pair in _twins(targets, expected) if not _equal(*(state[name] for name in pair))],
        absent=frozenset(info.missing_keys),
        info=info,
        quantizer=settings.hf_quantizer,
    )


def _targets(
    names: Iterable[str], model: Any, expected: Mapping[str, Any], mapping: list[Any]
) -> dict[str, tuple[str, str | None]]:
    """The name in the model, as transformers finds it, and the pattern of the conversion that takes the tensor."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    found = {}
    for name in names:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        found[name] = (name, None) if target not in expected and name in expected else (target, pattern)
    return found


def _aliases(target: str, pattern: str | None, mapping: list[Any]) -> list[str]:
    """The names under which a tensor is reported: a conversion that splits it would have made several of it."""
    entry = next((entry for entry in mapping if pattern is not None and pattern in entry.source_patterns), None)
    if entry is None:
        return [target]
    return [target.replace(entry.target_patterns[0], made) for made in entry.target_patterns]


def _twins(targets: Mapping[str, tuple[str, str | None]], expected: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of tensors of which only one can be used. Experts that are put together differ in their numbers."""
    places = defaultdict(list)
    for name, (target, pattern) in targets.items():
        if target in expected:
            numbers = tuple(re.findall(r"\d+", name)) if pattern is not None else ()
            places[target, pattern, numbers].append(name)
    for names in places.values():
        yield from ((names[0], other) for other in names[1:])


def _read(tensor: Any) -> Any:
    return tensor[...] if hasattr(tensor, "get_shape") else tensor.detach()


def _equal(one: Any, other: Any) -> bool:
    import torch

    return bool(torch.equal(_read(one), _read(other)))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


def _dtype(tensor: Any) -> str:
    """Of a tensor, or of a slice of a safetensors file."""
    if hasattr(tensor, "get_dtype"):
        return DTYPES.get(code := tensor.get_dtype(), str(code).lower())
    return str(tensor.dtype).removeprefix("torch.")
