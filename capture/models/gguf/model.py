"""From the keys and tensors of a file to transformers' configuration and parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from attnlens.capture.models.account import grouped, three
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.gguf.architecture import Architecture, Rule
from attnlens.capture.models.gguf.file import Header
from attnlens.capture.models.gguf.gemma import GEMMA
from attnlens.capture.models.gguf.gemma4 import GEMMA4
from attnlens.capture.models.gguf.gpt_oss import GPT_OSS
from attnlens.capture.models.gguf.keys import Keys
from attnlens.capture.models.gguf.layer_norm import LAYER_NORM
from attnlens.capture.models.gguf.llama import LLAMA
from attnlens.capture.models.gguf.qwen import QWEN
from attnlens.capture.models.gguf.qwen35 import QWEN35
from attnlens.capture.models.gguf.tokenizer import APPLIED
from attnlens.schemas.errors import InputError, ModelError, Setting
from attnlens.schemas.metadata import LeftOut

ARCHITECTURES: dict[str, Architecture] = {**LLAMA, **QWEN, **QWEN35, **GEMMA, **GEMMA4, **LAYER_NORM, **GPT_OSS}
NO_DECODER = {
    "bert": "is no causal language model",
    "clip": "is no language model",
    "mamba": "has no attention",
    "mamba2": "has no attention",
    "rwkv6": "has no attention",
    "rwkv7": "has no attention",
    "t5": "is no decoder alone",
    "t5encoder": "is no causal language model",
}


@dataclass(frozen=True)
class Described:
    """A file that was read to its last key: `values` of the configuration, and what is to be `noted` of it."""

    header: Header
    architecture: Architecture
    values: dict[str, Any]
    noted: list[str]
    own: frozenset[str]
    """Tensors that the configuration has in it."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that may be left out though nothing is known of them."""


def describe(header: Header, *, tokenizer: bool = True) -> Described:
    """Apply every key; those of the tokenizer unless another is used.

    Raises:
        ModelError: names the architecture or key that we cannot apply.
    """
    keys = Keys(header)
    name = keys.architecture
    if name not in ARCHITECTURES:
        why = NO_DECODER.get(name, "is none that attnlens reads from GGUF")
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"{header.path.name}: the architecture {name} {why} (it reads {known})")
    if (kind := keys.whole("general.type", "model")) != "model":
        raise ModelError(f"{header.path.name} holds a thing of type {kind}, not a model")
    if (parts := keys.whole("split.count", 0)) > 1:
        raise ModelError(f"{header.path.name} is one of {parts} parts: merge them first (llama-gguf-split --merge)")
    architecture = ARCHITECTURES[name]
    values = {"model_type": architecture.model_type, **architecture.config(keys), **token_ids(keys)}
    keys.take(*(f"tokenizer.{name}" for name in APPLIED))
    layers = values.get("num_hidden_layers") or values["n_layer"]
    if not 0 < layers <= len(header.tensors):
        raise keys.refuse_key("block_count", f"is no number of layers that {len(header.tensors)} tensors can have")
    return Described(header, architecture, values, keys.finish(tokenizer=tokenizer), frozenset(keys.tensors))


def token_ids(keys: Keys) -> dict[str, Any]:
    """Ids of special tokens, as configurations have them. Several tokens may end a text."""
    ids = {role: keys.whole(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "eot", "eom", "padding")}
    ends = list(dict.fromkeys(ids[role] for role in ("eos", "eot", "eom") if ids[role] is not None))
    eos = ends[0] if len(ends) == 1 else ends or None
    return {"bos_token_id": ids["bos"], "eos_token_id": eos, "pad_token_id": ids["padding"]}


def configuration(described: Described) -> Any:
    """transformers' configuration.

    Raises:
        ModelError: the installed version does not know the model, or refuses its values.
    """
    from transformers import AutoConfig

    values = dict(described.values)
    kind = values.pop("model_type")
    name = described.header.path.name
    try:
        config = AutoConfig.for_model(kind, **values)
    except Exception as error:  # each class has checks of its own
        raise ModelError(f"{name}: transformers cannot make a {kind} of it: {one_line(error)}") from error
    kept, names = config.to_dict(), type(config).attribute_map
    for field, value in values.items():
        found = kept.get(field, kept.get(names.get(field, field)))
        if field not in described.architecture.renamed and not _holds(found, value):
            raise ModelError(f"{name}: transformers made {field} = {found} of {value}: the installed version differs")
    return config


def _holds(found: Any, value: Any) -> bool:
    """The configuration has the value; of an object, every part of it."""
    if isinstance(value, dict) and isinstance(found, dict):
        return all(_holds(found.get(name), part) for name, part in value.items())
    return bool(found == value)


def rules_of(described: Described) -> list[Rule]:
    """The rules of the architecture, one for each layer."""
    layers = range(described.values.get("num_hidden_layers") or described.values["n_layer"])
    found = []
    for rule in described.architecture.rules(described.values):
        targets = (rule.target,) if isinstance(rule.target, str) else rule.target
        if "{n}" not in targets[0]:
            found.append(rule)
            continue
        for n in layers:
            sources = tuple(source.replace("{n}", str(n)) for source in rule.sources)
            target = tuple(target.replace("{n}", str(n)) for target in targets)
            found.append(Rule(sources, target, rule.build))
    return found


def assigned(described: Described) -> list[Rule]:
    """The rules that this file follows; every tensor is in one of them, once.

    Raises:
        ModelError: names a tensor that has no place, or that lacks its fellow.
        InputError: a pattern of `ignored` matches no tensor that has no place.
    """
    chosen, left = _assign(described)
    foreign = [name for name in left if _asked_for(described, name) is None]
    if foreign:
        raise _refuse(
            described.header,
            f"tensors that have no place in {described.values['model_type']}: {three(foreign)}",
            "; if the model is right without them: ",
            Setting("ignore_weights=[PATTERN]", "--ignore-weights PATTERN"),
        )
    for pattern in described.ignored:
        if not any(fnmatchcase(name, pattern) for name in left):
            raise InputError(
                Setting("ignore_weights"),
                f" {pattern} matches no tensor that {described.header.path.name} leaves out",
            )
    return chosen


def _asked_for(described: Described, name: str) -> str | None:
    """The pattern by which a tensor may be left out."""
    return next((pattern for pattern in described.ignored if fnmatchcase(name, pattern)), None)


def _assign(described: Described) -> tuple[list[Rule], list[str]]:
    """The rules that this file follows, and the tensors that no rule takes."""
    header = described.header
    chosen: list[Rule] = []
    used: set[str] = set(described.own)
    unread = {name for name in header.tensors if described.architecture.unread(described.values, name)}
    targets: set[str] = set()
    for rule in rules_of(described):
        present = [source for source in rule.sources if source in header.tensors and source not in unread]
        goals = {rule.target} if isinstance(rule.target, str) else set(rule.target)
        if len(present) < len(rule.sources) or (not rule.sources and goals & targets):
            continue
        if goals & targets:
            raise _refuse(header, f"two tensors stand for {min(goals & targets)}")
        chosen.append(rule)
        used |= set(present)
        targets |= goals
    return chosen, [name for name in header.tensors if name not in used and name not in unread]


def left_out(described: Described) -> tuple[LeftOut, ...]:
    """Tensors that the model does not use, for the store; `*` stands for numbers."""
    unread, why = described.architecture.unread, described.architecture.why_unread
    reasons = {name: why for name in described.header.tensors if unread(described.values, name)}
    reasons |= {name: f"ignored on request: {_asked_for(described, name)}" for name in _assign(described)[1]}
    return grouped(dict(sorted(reasons.items())))


def _refuse(header: Header, problem: str, *otherwise: str) -> ModelError:
    return ModelError(
        f"{header.path.name}: {problem}. attnlens would compute something else than the model: "
        "capture the checkpoint that the file was made of instead",
        *otherwise,
    )


def parameters(described: Described, dtype: Any) -> Iterator[tuple[str, Any]]:
    """Every parameter of the file as (name, torch tensor), one rule after another."""
    import numpy as np
    import torch

    for rule in assigned(described):
        arrays = [described.header.read(source) for source in rule.sources]
        made = rule.build(described.values, *arrays) if rule.build else arrays[0]
        single = isinstance(rule.target, str) or len(rule.target) == 1
        targets = (rule.target,) if isinstance(rule.target, str) else rule.target
        for target, array in zip(targets, (made,) if single else made, strict=True):
            # a copy: arrays may be views of a file that is mapped read-only
            yield target, torch.from_numpy(np.array(array, order="C")).to(dtype)


def check_places(described: Described, config: Any) -> None:
    """Return if every parameter that the file gives is one of the model's.

    Raises:
        ModelError: names one that is not.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config).state_dict().keys()
    for rule in assigned(described):
        for target in (rule.target,) if isinstance(rule.target, str) else rule.target:
            if target not in names:
                raise _refuse(
                    described.header, f"{' and '.join(rule.sources)} would be {target}, which the model does not have"
                )
