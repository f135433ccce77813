"""Rotary position embedding: what keys and tensors of a GGUF file say of it, as transformers' `rope_parameters`.

llama.cpp turns pair i of a head's first d features by position · base^(-2i/d) / divisor(i), and multiplies cosine and
sine by an attention factor. Divisors come from `rope_freqs.weight`, from a pair of tensors for short and long contexts,
or from `rope.scaling.*`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from attnlens.capture.models.gguf.keys import Keys

FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
SCALING = "rope.scaling."
ROUNDING = 2e-6  # of a frequency: some steps of float32
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_tensors(keys: Keys) -> list[str]:
    """Names of the tensors with divisors, where there are some."""
    return [name for name in (FREQS, SHORT, LONG) if name in keys.header.tensors]


def rope_parameters(keys: Keys, features: int, *, partial: bool = False, only_longrope: bool = False) -> dict[str, Any]:
    """transformers' `rope_parameters` for heads of `features` features.

    Args:
        partial: the model's class can leave a head's last features unturned.
        only_longrope: the model's class knows no other scaling than divisors (Phi-3's).

    Raises:
        ModelError: names the key or tensor that transformers cannot do.
    """
    theta = float(keys.get("rope.freq_base", 10000.0))
    width = int(keys.get("rope.dimension_count", features))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if width != features:
        if not partial or not 0 < width < features or width % 2:
            raise keys.refuse_key("rope.dimension_count", f"is not the {features} features of a head")
        rope["partial_rotary_factor"] = fraction(width, features)
    context = int(keys.need("context_length"))
    kind = keys.get(SCALING + "type", "linear")
    linear = float(keys.get(SCALING + "factor") or keys.get("rope.scale_linear") or 1.0)
    original = int(keys.get(SCALING + "original_context_length", context))
    attention = float(keys.get(SCALING + "attn_factor", 1.0))
    yarn = {name: keys.get(f"{SCALING}yarn_{name}") for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")}
    tensors = rope_tensors(keys)
    keys.tensors.update(tensors)
    if kind not in {"none", "linear", "yarn", "longrope"}:
        raise keys.refuse_key(SCALING + "type", "is no scaling that attnlens knows")
    if kind == "yarn" and linear != 1.0:
        if tensors or only_longrope:
            raise keys.refuse_key(SCALING + "type", "cannot be combined with this model's other rotary settings")
        return rope | _yarn(keys, yarn, linear, original, attention)
    if kind == "none":
        linear = 1.0
    attention *= _leftover(keys, yarn, kind)
    if FREQS in tensors and len(tensors) > 1:
        raise keys.refuse(f"it has {FREQS} and {tensors[1]}, of which one is used")
    if (SHORT in tensors) != (LONG in tensors):
        raise keys.refuse(f"it has {tensors[0]} alone; short and long contexts need one each")
    short, long = (
        _divisors(keys, name, width) * linear for name in ((SHORT, LONG) if SHORT in tensors else (FREQS,) * 2)
    )
    if attention == 1.0 and np.array_equal(short, long):
        return rope | _known(short, rope, width, keys.get(SCALING + "original_context_length"), context, only_longrope)
    return rope | _longrope(short, long, original, attention)


def _leftover(keys: Keys, yarn: dict[str, Any], kind: str) -> float:
    """The attention factor of YaRN's keys where frequencies are not scaled by YaRN.

    Raises:
        ModelError: they say something, and the type of scaling is another.
    """
    neutral = {"ext_factor": {None, -1.0, 1.0 if kind == "yarn" else 0.0}, "attn_factor": {None, -1.0, 1.0}}
    for name, values in neutral.items():
        if yarn[name] not in values and (kind != "yarn" or name == "ext_factor"):
            raise keys.refuse_key(f"{SCALING}yarn_{name}", f"stands beside a scaling of type {kind}")
    whole = yarn["attn_factor"]
    return float(whole) if kind == "yarn" and whole is not None and whole > 0 else 1.0


def fraction(width: int, features: int) -> float:
    """width / features, such that int(features · fraction) is `width`, as transformers computes it."""
    found = width / features
    return found if int(features * found) == width else math.nextafter(found, 1.0)


def _divisors(keys: Keys, name: str, width: int) -> Any:
    """Divisors (pair,) of a tensor, ones if there is none."""
    if name not in keys.header.tensors:
        return np.ones(width // 2)
    found = keys.header.read(name).astype(np.float64)
    if found.shape != (width // 2,):
        raise keys.refuse(f"the tensor {name} has shape {found.shape}, {width} turned features need ({width // 2},)")
    if not np.isfinite(found).all() or (found <= 0).any():
        raise keys.refuse(f"the tensor {name} has divisors that are no positive numbers")
    return found


def _known(
    divisors: Any, rope: dict[str, Any], width: int, original: int | None, context: int, only_longrope: bool
) -> dict[str, Any]:
    """The scaling by its usual name, if that gives the same frequencies; otherwise by its divisors."""
    if (divisors == 1).all():
        return {}
    if not only_longrope:
        if np.ptp(divisors) == 0:
            return {"rope_type": "linear", "factor": float(divisors[0])}
        llama3 = {"rope_type": "llama3", "factor": float(divisors.max()), **LLAMA3}
        if original is not None:
            llama3["original_max_position_embeddings"] = original
        if np.allclose(_llama3(llama3, rope["rope_theta"], width) * divisors, 1.0, rtol=0, atol=ROUNDING):
            return llama3
    return _longrope(divisors, divisors, context, 1.0)


def _llama3(rope: dict[str, Any], theta: float, width: int) -> Any:
    """1 / divisors (pair,) of Llama 3.1's scaling, by the formula of Meta's code."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, width, 2) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((rope["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return (1 - smooth) / rope["factor"] + smooth


def _longrope(short: Any, long: Any, original: int, attention: float) -> dict[str, Any]:
    """Divisors as they are. transformers turns to the long ones beyond `original` tokens."""
    return {
        "rope_type": "longrope",
        "short_factor": [float(value) for value in short],
        "long_factor": [float(value) for value in long],
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def _yarn(keys: Keys, yarn: dict[str, Any], factor: float, original: int, attention: float) -> dict[str, Any]:
    """YaRN. `yarn_attn_factor` is the whole attention factor, 1 + 0.1 ln(factor) if it is not given."""
    if yarn["ext_factor"] is not None and yarn["ext_factor"] >= 0 and yarn["ext_factor"] != 1:
        raise keys.refuse_key(SCALING + "yarn_ext_factor", "is not 1, the only one that transformers can do")
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    whole = yarn["attn_factor"]
    if whole is None or whole < 0:
        whole = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    found["attention_factor"] = whole * attention
    for name in ("beta_fast", "beta_slow"):
        if yarn[name] is not None and yarn[name] > 0:
            found[name] = float(yarn[name])
    return found
