"""A model's generation settings made ready as transformers' own `generate` does it: processors, warpers, stopping."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedConfig, StoppingCriteria
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from attnlens.capture.generation_fields import FIELDS, asks, check_overrides, checked, plain, unknown
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.quiet import quiet
from attnlens.capture.settings import Generation
from attnlens.schemas.errors import InputError, ModelError

ROPE_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rope whose older keys are another's once the text is longer: without a cache they are all made anew."""

FAIL_OUTSIDE = ("bad_words_ids", "sequence_bias", "forced_eos_token_id")
"""Fields that transformers cannot apply if they name a token that is none of the vocabulary's."""
TOKEN_FIELDS = (*FAIL_OUTSIDE, "eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What chooses the tokens of one text.

    Attributes:
        processors: from logits to scores, in the order of `generate`: processors, then warpers where tokens are drawn.
        ends: ids that end the text.
        criteria: what else ends it.
        held: settings that hold and are not neutral, as plain JSON.
    """

    processors: LogitsProcessorList
    ends: frozenset[int]
    criteria: tuple[StoppingCriteria, ...]
    held: dict[str, Any]


class _Plain(GenerationMixin):  # type: ignore[misc]
    """What transformers asks of a model as it prepares to generate, with other settings than the model's own.

    It stands for a model whose settings are replaced, whose class cannot generate, or which is wrapped in another.
    """

    def __init__(self, model: nn.Module, settings: GenerationConfig) -> None:
        config = getattr(model, "config", None)
        self.config = config if isinstance(config, PreTrainedConfig) else PreTrainedConfig()
        self.generation_config = settings


def settings_of(model: nn.Module) -> GenerationConfig:
    """The model's own generation settings; those of transformers if it has none."""
    found = getattr(model, "generation_config", None)
    return found if isinstance(found, GenerationConfig) else GenerationConfig()


def prepare(
    model: nn.Module, tokenizer: Any, generation: Generation, prompt: Sequence[int], device: torch.device
) -> Prepared:
    """The model's generation settings, those replaced that `generation` replaces, ready for a prompt of these ids.

    The time of `max_time` begins here.

    Raises:
        InputError: a setting that was given cannot be used.
        ModelError: the model's own settings ask for something that is not done here, or cannot be used.
    """
    own = settings_of(model)
    overrides = check_overrides(generation.overrides)
    values = _checked(own, overrides, model)
    ids = torch.tensor([list(prompt)], dtype=torch.long, device=device)
    try:
        with quiet():
            settings = copy.deepcopy(own)
            for name, value in _given(overrides).items():
                setattr(settings, name, value)
            plain_model = _Plain(model, settings)
            config = _settled(plain_model, tokenizer, generation, overrides, values)
            # A class may have processors of its own, which `generate` takes.
            return _built(model if isinstance(model, GenerationMixin) else plain_model, tokenizer, config, ids)
    except Exception as error:  # what a value means is checked in many places of transformers, and of a model's class
        kind = InputError if overrides else ModelError
        raise kind(f"the generation settings {told(_asked(values))} cannot be used: {one_line(error)}") from error


def check_vocabulary(held: Mapping[str, Any], overrides: Mapping[str, Any], size: int) -> None:
    """Return if the settings that hold name tokens of a vocabulary of `size` only, where it matters.

    Raises:
        InputError: a setting that was given names another one.
        ModelError: one of the model's own does, and would fail once it acts.
    """
    for name in TOKEN_FIELDS:
        outside = next((token for token in _tokens(held.get(name)) if token >= size), None)
        if outside is None:
            continue
        said = f"{name} names token {outside}, and the model's vocabulary is 0 … {size - 1}"
        if overrides.get(name) is not None:
            raise InputError(f"the generation setting {said}")
        if name in FAIL_OUTSIDE:
            raise ModelError(f"of the model's own settings, {said}; {_undo(name, None)}")


def _tokens(value: Any) -> Iterator[int]:
    """Ids in a value of a field of tokens, without biases."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _tokens(item)


def told(settings: Mapping[str, Any]) -> str:
    """Settings in words, for messages."""
    text = ", ".join(f"{name}={value!r}" for name, value in settings.items()) or "as they are by default"
    return text if len(text) <= 200 else f"{text[:199]}…"


def _settled(
    model: Any, tokenizer: Any, generation: Generation, overrides: Mapping[str, Any], values: Mapping[str, Any]
) -> GenerationConfig:
    """The settings that hold: the model's, replaced where a person replaces them, completed by transformers' own."""
    # Asked with None it refuses a model's configuration that holds names of generation settings. With code of a model's
    # own that may be `top_k` of its experts.
    none = None if type(model.config).__module__.startswith("transformers.") else GenerationConfig()
    config: GenerationConfig = model._prepare_generation_config(none, **_given(overrides), **_chosen(generation))[0]
    for name, value in values.items():
        setattr(config, name, value)
    if config.eos_token_id is None and "eos_token_id" not in overrides:
        config.eos_token_id = getattr(tokenizer, "eos_token_id", None)
    if config.exponential_decay_length_penalty is not None and config.eos_token_id is None:
        raise ValueError("exponential_decay_length_penalty acts on the end token, and eos_token_id names none")
    return config


def _built(mixin: Any, tokenizer: Any, config: GenerationConfig, ids: Tensor) -> Prepared:
    """What transformers makes of settings, for a prompt of ids int64 (1, token), in the order of `generate`."""
    held, ends, n_prompt = _held(config), _ends(config.eos_token_id), ids.shape[1]
    config = mixin._prepare_generated_length(config, True, True, "input_ids", n_prompt, ids)
    mixin._prepare_special_tokens(config, True, device=ids.device)
    processors = mixin._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=n_prompt,
        encoder_input_ids=ids,
        prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(),
        device=ids.device,
        model_kwargs={},
    )
    criteria = mixin._get_stopping_criteria(config, [], tokenizer=tokenizer)
    return Prepared(
        processors=processors,
        ends=ends,
        # The length is ours to watch, and end tokens are known without asking the device.
        criteria=tuple(one for one in criteria if not isinstance(one, MaxLengthCriteria | EosTokenCriteria)),
        held=held,
    )


def _given(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers is told of replaced settings: those that act."""
    return {name: value for name, value in overrides.items() if name in FIELDS and FIELDS[name].how != "idle"}


def _chosen(generation: Generation) -> dict[str, Any]:
    """What options decide, as `generate` calls it."""
    drawn = {"temperature": float(generation.temperature), "top_p": float(generation.top_p)}
    return {
        "max_new_tokens": max(1, generation.max_new_tokens),
        "do_sample": generation.temperature > 0,
        **(drawn if generation.temperature > 0 else {}),
    }


def _checked(own: GenerationConfig, overrides: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Values of all honoured fields that are set.

    Raises:
        InputError: an override of a field that nobody knows.
        ModelError: something that is not done here, or a wrong value.
    """
    found: dict[str, Any] = {}
    for name, value in {**own.to_dict(), **overrides}.items():
        if name.startswith("_"):  # what transformers notes for itself
            continue
        if name not in FIELDS:
            if name in overrides and name not in vars(own):
                raise InputError(unknown(name))
            _refuse_unknown(name, value)
        elif name == "use_cache" and value is False and _cache_matters(model):
            raise _refusal(name, value, "without a cache the rope of this model turns old keys anew", True)
        elif FIELDS[name].how == "refused" and asks(name, value):
            raise _refusal(name, value, FIELDS[name].why, FIELDS[name].neutral[0])
        elif FIELDS[name].how in ("honoured", "sampling") and value is not None:
            try:
                found[name] = checked(name, value)
            except InputError as error:
                if name in overrides:
                    raise
                raise ModelError(f"of the model's own settings, {error}; {_undo(name, None)}") from None
    return found


def _refuse_unknown(name: str, value: Any) -> None:
    if value is not None and value != GenerationConfig().to_dict().get(name):
        raise ModelError(
            f"the model's generation settings hold {name}={value!r}, which attnlens does not know; {_undo(name, None)}"
        )


def _refusal(name: str, value: Any, why: str, neutral: Any) -> ModelError:
    return ModelError(
        f"the model's generation settings ask for {name}={value!r}, which attnlens does not do ({why}); "
        f"{_undo(name, neutral)}"
    )


def _undo(name: str, value: Any) -> str:
    """How a person leaves a setting out."""
    return f"leave it out by --generation {name}={json.dumps(value)} (from Python: generation={{{name!r}: {value!r}}})"


def _cache_matters(model: nn.Module) -> bool:
    """Whether keys of a text depend on how long it is now, so that a cache keeps other ones than a new pass makes."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, Mapping):
        return False
    kinds = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    return any(part.get("rope_type") in ROPE_BY_LENGTH for part in kinds)


def _held(config: GenerationConfig) -> dict[str, Any]:
    """Honoured settings away from neutral."""
    hows = ("honoured", "sampling") if config.do_sample else ("honoured",)
    return _asked({name: getattr(config, name, None) for name, field in FIELDS.items() if field.how in hows})


def _asked(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in values.items() if value is not None and asks(name, value)}


def _ends(found: Any) -> frozenset[int]:
    if found is None:
        return frozenset()
    return frozenset(int(end) for end in (found if isinstance(found, list | tuple | Tensor) else [found]))
