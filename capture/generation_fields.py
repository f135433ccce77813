"""Every field of transformers' `GenerationConfig`, and what becomes of it here.

A field that is not in the table and not at its default is refused, so that no setting is passed over silently.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from attnlens.schemas.errors import InputError

How = Literal["honoured", "sampling", "refused", "idle", "option"]


@dataclass(frozen=True)
class Kind:
    """What the value of a field must be: a type, as strict as JSON's, and the same in words."""

    type: Any
    words: str

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Its validator."""
        return TypeAdapter(self.type)


Token = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Word = Annotated[str, Field(min_length=1)]
ANYTHING = Kind(Any, "a JSON value")
COUNT = Kind(Annotated[int, Field(ge=0)], "a whole number from 0")
POSITIVE = Kind(Annotated[float, Field(gt=0)], "a number above 0")
SHARE = Kind(Annotated[float, Field(gt=0, le=1)], "a number above 0 and at most 1")
CUTOFF = Kind(Annotated[float, Field(ge=0, lt=1)], "a number from 0 and below 1")
MINIMUM = Kind(Annotated[float, Field(ge=0, le=1)], "a number from 0 to 1")
FLAG = Kind(bool, "true or false")
TOKEN = Kind(Token, "a token id")
TOKENS = Kind(list[Token], "a list of token ids")
ENDS = Kind(int | Annotated[list[int], Field(min_length=1)], "a token id or a list of them")
FORCED = Kind(Token | Tokens, "a token id or a list of them")
SEQUENCES = Kind(Annotated[list[Tokens], Field(min_length=1)], "a list of lists of token ids")
BIAS = Kind(Annotated[list[tuple[Tokens, float]], Field(min_length=1)], "a list of [[token ids], bias] pairs")
DECAY = Kind(tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]], "[start, factor]")
TEXTS = Kind(Word | Annotated[list[Word], Field(min_length=1)], "a text or a list of texts")


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What becomes of a field.

    Attributes:
        how: `honoured` always; `sampling`: honoured, but greedy choice does not look at it; `refused` away from
            `neutral`; `idle`: changes nothing here; `option`: an option of ours decides instead.
        kind: what a value must be.
        neutral: values that ask for nothing. The first one undoes the setting.
        why: of a refused one, what it would do; of an idle one, why it changes nothing; else the option's name.
    """

    how: How
    kind: Kind = ANYTHING
    neutral: tuple[Any, ...] = (None,)
    why: str = ""


def _honoured(kind: Kind, *neutral: Any) -> Treatment:
    return Treatment(how="honoured", kind=kind, neutral=(None, *neutral))


def _sampling(kind: Kind, *neutral: Any) -> Treatment:
    return Treatment(how="sampling", kind=kind, neutral=(None, *neutral))


def _refused(why: str, *neutral: Any) -> Treatment:
    return Treatment(how="refused", neutral=(*neutral, None), why=why)


def _idle(why: str) -> Treatment:
    return Treatment(how="idle", why=why)


def _option(name: str) -> Treatment:
    return Treatment(how="option", why=name)


_BEAMS = "one text is followed, not several beams"
_DRAFT = "the model itself checks what is drafted, which changes no probability"
_OUTPUT = "it says what generate returns"
_COMPILED = "it says how generate compiles the model"

FIELDS: dict[str, Treatment] = {
    # How long the text gets, and where it ends
    "max_length": _option("--max-new-tokens"),
    "max_new_tokens": _option("--max-new-tokens"),
    "min_length": _honoured(COUNT, 0),
    "min_new_tokens": _honoured(COUNT, 0),
    "max_time": _honoured(POSITIVE),
    "stop_strings": _honoured(TEXTS),
    "eos_token_id": _honoured(ENDS),
    "forced_eos_token_id": _honoured(FORCED),
    "exponential_decay_length_penalty": _honoured(DECAY),
    "early_stopping": _idle(_BEAMS),
    "length_penalty": _idle(_BEAMS),
    # Logits, before a token is chosen
    "repetition_penalty": _honoured(POSITIVE, 1.0),
    "encoder_repetition_penalty": _honoured(POSITIVE, 1.0),
    "no_repeat_ngram_size": _honoured(COUNT, 0),
    "encoder_no_repeat_ngram_size": _honoured(COUNT, 0),
    "bad_words_ids": _honoured(SEQUENCES),
    "sequence_bias": _honoured(BIAS),
    "suppress_tokens": _honoured(TOKENS),
    "begin_suppress_tokens": _honoured(TOKENS),
    "forced_bos_token_id": _honoured(TOKEN),
    "remove_invalid_values": _honoured(FLAG, False),
    "renormalize_logits": _honoured(FLAG, False),
    # Sampling
    "do_sample": _option("--temperature, 0 for greedy"),
    "temperature": _option("--temperature"),
    "top_p": _option("--top-p"),
    "top_k": _sampling(COUNT, 0),
    "min_p": _sampling(MINIMUM, 0.0),
    "top_h": _sampling(SHARE),
    "typical_p": _sampling(SHARE, 1.0),
    "epsilon_cutoff": _sampling(CUTOFF, 0.0),
    "eta_cutoff": _sampling(CUTOFF, 0.0),
    # Other ways to generate
    "num_beams": _refused("it searches with beams", 1),
    "num_beam_groups": _refused("it searches with groups of beams", 1),
    "num_return_sequences": _refused("it asks for several texts", 1),
    "constraints": _refused("it forces words by beam search"),
    "force_words_ids": _refused("it forces words by beam search"),
    "penalty_alpha": _refused("it is contrastive search", None, 0, 0.0),
    "dola_layers": _refused("it contrasts layers"),
    "guidance_scale": _refused("it runs the model twice a token", None, 1, 1.0),
    "watermarking_config": _refused("it biases tokens by a watermark"),
    "token_healing": _refused("it rewrites the end of the prompt", False),
    "assistant_ensemble_weight": _refused("it mixes in a draft model's probabilities"),
    "is_assistant": _refused("it ends the text where a draft is unsure", False),
    "prefill_chunk_size": _refused("it feeds the prompt in pieces"),
    "diversity_penalty": _idle("it acts between groups of beams"),
    "low_memory": _idle("it acts in contrastive search"),
    # Speculation
    "num_assistant_tokens": _idle(_DRAFT),
    "num_assistant_tokens_schedule": _idle(_DRAFT),
    "assistant_confidence_threshold": _idle(_DRAFT),
    "assistant_early_exit": _idle(_DRAFT),
    "assistant_lookbehind": _idle(_DRAFT),
    "target_lookbehind": _idle(_DRAFT),
    "prompt_lookup_num_tokens": _idle(_DRAFT),
    "max_matching_ngram_size": _idle(_DRAFT),
    "speculation_type": _idle(_DRAFT),
    "use_mtp": _idle(_DRAFT),
    # The cache. `use_cache` false is refused where a cache changes what is computed, see `generation.py`
    "use_cache": _idle("a cache saves work and changes no number"),
    "cache_implementation": _refused(
        "it rounds keys and values, or leaves generate's own loop",
        None,
        *("dynamic", "offloaded", "static", "offloaded_static", "sliding_window"),
        *("hybrid", "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked"),
    ),
    "cache_config": _idle("it belongs to quantized caches"),
    "max_cache_len": _idle("it says how much memory a cache takes beforehand"),
    # Ids with a use elsewhere
    "pad_token_id": _idle("one text at a time needs no padding"),
    "bos_token_id": _idle("the prompt is given"),
    "decoder_start_token_id": _idle("it belongs to encoder-decoder models"),
    # What comes back, and how fast
    "output_attentions": _idle(_OUTPUT),
    "output_hidden_states": _idle(_OUTPUT),
    "output_scores": _idle(_OUTPUT),
    "output_logits": _idle(_OUTPUT),
    "return_dict_in_generate": _idle(_OUTPUT),
    "return_legacy_cache": _idle(_OUTPUT),
    "compile_config": _idle(_COMPILED),
    "disable_compile": _idle(_COMPILED),
    "continuous_batching_config": _idle("it says how requests share a GPU"),
    "transformers_version": _idle("it says who wrote the settings"),
    # Not of transformers, but in published files, for the model's own chat function
    "chat_format": _idle("the tokenizer's chat template decides"),
    "max_window_size": _idle("the prompt is given"),
    "user_token_id": _idle("the prompt is given"),
    "assistant_token_id": _idle("the prompt is given"),
}


def asks(name: str, value: Any) -> bool:
    """Whether a value of a field of the table asks for something."""
    # True == 1 in Python, and a flag is no number.
    return not any(value == calm and isinstance(value, bool) == isinstance(calm, bool) for calm in FIELDS[name].neutral)


def checked(name: str, value: Any) -> Any:
    """A field's value as plain JSON, whole numbers as floats where those are meant.

    Raises:
        InputError: it is not what the field takes.
    """
    kind = FIELDS[name].kind
    try:
        found: Any = plain(value)
        text = json.dumps(found, allow_nan=False)
        if value is None or kind is ANYTHING:
            return found
        return plain(kind.adapter.validate_json(text, strict=True))
    except (ValidationError, TypeError, ValueError) as error:
        # A store could not say what held: JSON knows neither.
        finite = ", and neither NaN nor infinite" if "JSON compliant" in str(error) else ""
        raise InputError(f"the generation setting {name} is {value!r}, expected {kind.words}{finite}") from None


def check_overrides(overrides: Any) -> dict[str, Any]:
    """Settings that a person replaces, as plain JSON. None unsets one.

    Raises:
        InputError: an unknown field, one that an option decides, one that is not done here, or a wrong value.
    """
    if not isinstance(overrides, Mapping):
        kind = type(overrides).__name__
        raise InputError(f"the generation settings are of class {kind}, expected a mapping such as {{'top_k': 20}}")
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in FIELDS:
            # Unsetting a field of the model's own is right, and the model is not known yet.
            if value is not None:
                raise InputError(unknown(name))
            found[name] = None
            continue
        treatment = FIELDS[name]
        if treatment.how == "option":
            raise InputError(f"the generation setting {name} is decided by {treatment.why}; give that instead")
        if treatment.how == "refused" and asks(name, value):
            raise InputError(f"the generation setting {name}={value!r} is not done here: {treatment.why}")
        found[name] = checked(name, value)
    return found


def unknown(name: str) -> str:
    """What is said of a field that nobody knows."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), FIELDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; transformers' GenerationConfig lists them"
    return f"there is no generation setting {name!r}{hint}"


def plain(value: Any) -> Any:
    """As JSON has it: tuples, arrays and tensors as lists, a mapping from tuples as a list of pairs.

    Raises:
        TypeError: it holds something that JSON cannot express.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: plain(item) for key, item in value.items()}
        return [[plain(key), plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(type(value).__name__)
