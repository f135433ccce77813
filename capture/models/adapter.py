"""A folder or hub repository with a PEFT adapter: beside the base model, or alone and naming it."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnlens.capture.adapters import WRAPPER, adapters_of, digest, require_every_token, weights_of
from attnlens.capture.extra import require_package
from attnlens.capture.models.account import three
from attnlens.capture.models.checkpoint import LAYOUTS, check_safetensors, check_torch_file
from attnlens.capture.models.failure import one_line
from attnlens.schemas.errors import AttnlensError, ModelError
from attnlens.schemas.metadata import Adapter

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NAME = "default"
"""peft's name for an adapter that was given none; it may hold no dot, so the folder's name cannot be it."""
BESIDES = ("XLORA", "POLY", "SHADOW")
"""Types that need more than the changed model: a pass before the pass, numbers of tasks."""
REFERENCES = (".vera_A.default", ".vera_B.default", ".tinylora_v.default", ".unilora_theta_d.default")
"""Places of layers that stand for one tensor of the whole adapter."""


@dataclass(frozen=True)
class AdapterSource:
    """A folder with an adapter. `base`: the model that it names, None where that lies in the same place.

    `revision` is the base's. `settings`: names in its config that are given and not null, false or empty.
    """

    place: str
    name: str
    base: str | None
    revision: str | None
    settings: frozenset[str]


def in_folder(folder: Path, name: str) -> AdapterSource | None:
    """The adapter in a local folder, None where there is none. Asked before torch is imported.

    Raises:
        ModelError: the adapter is damaged, has no weights, or does not name its base.
        MissingExtraError: peft is not installed. A model is never loaded without its adapter.
    """
    path = folder / CONFIG
    if not path.is_file():
        if left := next((file for file in WEIGHTS if (folder / file).is_file()), None):
            raise ModelError(
                f"{folder} holds the weights of an adapter ({left}) and no {CONFIG}: add it, or remove them"
            )
        return None
    require_package("peft", f"{folder}, which holds an adapter ({CONFIG}),")
    first = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if first is None:
        raise ModelError(f"{folder} has an {CONFIG} and no weights of the adapter: expected {' or '.join(WEIGHTS)}")
    (check_safetensors if first.suffix == ".safetensors" else check_torch_file)(first)
    beside = (folder / "config.json").is_file() and any((folder / file).is_file() for file in LAYOUTS)
    return _read(path, str(folder), name, beside=beside)


def refuse_beside(folder: Path, layout: str) -> None:
    """Return if a folder holds no adapter beside its model, to which it could not be applied.

    Raises:
        ModelError: it does.
    """
    for file in (CONFIG, *WEIGHTS):
        if (folder / file).is_file():
            raise ModelError(
                f"{folder} holds an adapter ({file}) beside a model in {layout}: adapters are applied to models in "
                "Hugging Face's layout only; to capture the model without it, move it elsewhere"
            )


def on_hub(name: str, shared: dict[str, Any]) -> AdapterSource | None:
    """The adapter in a hub repository, None where there is none.

    Raises:
        ModelError, MissingExtraError: as `in_folder`.
    """
    from transformers.utils import cached_file

    options = _hub_options(shared)
    quietly = {
        f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")
    }
    try:
        path = cached_file(name, CONFIG, **options, **quietly)
    except OSError:  # no such repository: the config's turn to say so
        return None
    if path is None:
        return None
    require_package("peft", f"{name}, which holds an adapter ({CONFIG}),")
    weights = next((found for file in WEIGHTS if (found := cached_file(name, file, **options, **quietly))), None)
    if weights is None:
        raise ModelError(f"{name} has an {CONFIG} and no weights of the adapter: expected {' or '.join(WEIGHTS)}")
    config = cached_file(name, "config.json", **options, **quietly)
    beside = config is not None and any(_has(name, file, options) for file in LAYOUTS)
    return _read(Path(path), str(Path(weights).parent), name, beside=beside)


def _hub_options(shared: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in shared.items() if key in ("revision", "local_files_only")}


def _has(name: str, file: str, options: dict[str, Any]) -> bool:
    from transformers.utils.hub import has_file

    try:
        return bool(has_file(name, file, **options))
    except OSError:
        return False


def _read(path: Path, place: str, name: str, *, beside: bool) -> AdapterSource:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, OSError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    settings = frozenset(key for key, value in config.items() if value)
    if beside:
        return AdapterSource(place, name, None, None, settings)
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} does not name its base model: set base_model_name_or_path to a folder or a hub name")
    return AdapterSource(place, name, base, revision if isinstance(revision, str) else None, settings)


@contextmanager
def bare() -> Iterator[None]:
    """Inside the block transformers loads models without looking for adapters.

    Left to itself it does so only where peft is installed, and some releases then load the base model that the adapter
    names, not the one beside it.
    """
    from transformers import modeling_utils
    from transformers.models.auto import auto_factory

    found, looks = modeling_utils.maybe_load_adapters, auto_factory.is_peft_available
    modeling_utils.maybe_load_adapters = lambda name, _, **rest: (None, name, rest)
    auto_factory.is_peft_available = lambda: False
    try:
        yield
    finally:
        modeling_utils.maybe_load_adapters, auto_factory.is_peft_available = found, looks


def attach(model: Any, source: AdapterSource) -> tuple[Adapter, ...]:
    """Load the adapter into the base `model`, in place; what there is to say about it.

    By peft itself: transformers' own `load_adapter` leaves out the magnitudes of DoRA and, in some releases, layers
    that were trained as a whole.

    Raises:
        ModelError: it does not fit, or does more than change weights.
    """
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(source.place)
        _refuse_kind(source.name, config)
        _refuse_unknown(source, config)
        with warnings.catch_warnings():
            # Weights that are missing are refused below.
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            wrapped = PeftModel.from_pretrained(model, source.place, adapter_name=NAME)
        state = _loaded_again(wrapped, source)
    except AttnlensError:
        raise
    except Exception as error:
        raise ModelError(f"the adapter of {source.name} cannot be loaded: {one_line(error)}") from error
    if wrapped.get_base_model() is not model:
        raise ModelError(f"the adapter of {source.name} put another model in the place of its base")
    own = NAME if source.base is None else source.name
    return tuple(_named(adapter, own, wrapped, state) for adapter in adapters_of(wrapped))


def _refuse_kind(name: str, config: Any) -> None:
    """Some adapters are no change of weights: vectors before the text, another attention, a second model."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or config.is_adaption_prompt or kind in BESIDES:
        raise ModelError(
            f"the adapter of {name} is of type {kind}, which does more than change weights: it cannot be captured"
        )
    require_every_token(name, config)


def _refuse_unknown(source: AdapterSource, config: Any) -> None:
    """peft drops settings that it does not know with a warning."""
    known = {field.name for field in dataclasses.fields(config)} | {"peft_version"}
    if unknown := source.settings - known:
        raise ModelError(
            f"the adapter of {source.name} has settings that peft {version('peft')} does not know: {three(unknown)}; "
            "a newer peft may know them"
        )


def _loaded_again(wrapped: Any, source: AdapterSource) -> dict[str, Any]:
    """The tensors in the adapter's file, every one of which is in the model.

    Loaded a second time, because only this function of peft says what it had no use for.

    Raises:
        ModelError: a tensor is not used, or one that the adapter needs is not there.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    mapping = getattr(wrapped.get_base_model(), "_checkpoint_conversion_mapping", None)
    state = load_peft_weights(source.place, device="cpu", key_mapping=mapping)
    result = set_peft_model_state_dict(wrapped, dict(state), adapter_name=NAME)  # it takes some out
    missing = [key for key in result.missing_keys if NAME in key.split(".") and not key.endswith(REFERENCES)]
    for what, keys in (
        ("holds tensors that the model has no place for:", result.unexpected_keys),
        ("has no weights for", missing),
    ):
        if keys:
            raise ModelError(f"the adapter of {source.name} {what} {three(keys)}: it does not fit its base model")
    adapter = get_peft_model_state_dict(wrapped, adapter_name=NAME, save_embedding_layers=False)
    numbers, weights = sum(tensor.numel() for tensor in adapter.values()), set(wrapped.state_dict())
    # a trained embedding, for example, took the place of the base's own
    whole = {key: tensor for key, tensor in state.items() if key not in adapter and key in weights}
    given = sum(tensor.numel() for key, tensor in state.items() if key not in whole)
    if numbers < given:  # more there are where experts of old files are put together
        raise ModelError(
            f"the adapter of {source.name} has {given} numbers, of which {numbers} are in the model: it does not fit "
            "its base model"
        )
    return whole


def _named(adapter: Adapter, name: str, model: Any, whole: dict[str, Any]) -> Adapter:
    """By the name of its folder; with the weights that it replaced."""
    if not whole:
        return adapter.model_copy(update={"name": name})
    replaced = {re.sub(r"(\.base_layer)?\.\w+$", "", key).rpartition(".")[2] for key in whole}
    total = digest({**weights_of(model, NAME), **{key.removeprefix(WRAPPER): value for key, value in whole.items()}})
    return adapter.model_copy(update={"name": name, "targets": sorted({*adapter.targets, *replaced}), "digest": total})
