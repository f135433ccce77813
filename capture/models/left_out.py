"""Tensors that a checkpoint may hold and its model may leave out: the whole list, each with its reason.

Whatever is not on it is refused, because a model without its biases, scales or last layers still writes a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attnlens.capture.models.watch import Seen, Stored

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
AHEAD = re.compile(r"(^|\.)(mtp|mtp_\w+|nextn|nextn_\w+|medusa_heads?)\.")
AHEAD_MARKS = ("eh_proj", "enorm", "hnorm", "shared_head")
"""What a layer of its own for the token after next has, and a decoder layer lacks: it joins two streams."""
TOWERS = frozenset(
    {"vision_tower", "vision_model", "vision_encoder", "vision_embed_tokens", "visual", "image_encoder", "embed_vision"}
    | {"audio_tower", "audio_model", "audio_encoder", "speech_encoder", "embed_audio", "talker", "token2wav"}
    | {"multi_modal_projector", "mm_projector", "vision_projector", "image_projector", "audio_projector"}
    | {"image_newline", "view_seperator", "code2wav"}
)
TOWER = "a part for images or sound, which a text never enters"
HEADS = re.compile(
    r"^((\w+\.)?(v_head|value_head|reward_head|score|regression_layer|classifier|classification_head|pooler)"
    r"|cls\.seq_relationship)\."
)
CACHE_SCALES = re.compile(r"\.(k|v)_scale$|\.(k|v)_proj\.output_scale$")
MARKS = re.compile(r"(^|[._])(version|_float_tensor)$")


@dataclass(frozen=True)
class Model:
    """What is asked about the model.

    Attributes:
        ignored: names that its class wants to hear nothing of.
        depth: layers that its config asks for.
        ahead: prefixes of layers in the checkpoint that are heads for the token after next.
        words: parts of the names of its tensors.
        buffers: those that are in no checkpoint.
        bases: rotary bases that its config names.
        window: of local attention, tokens.
        quantized: a quantizer unpacks its weights.
    """

    ignored: re.Pattern[str] | None
    depth: int | None
    ahead: frozenset[str]
    words: frozenset[str]
    buffers: Mapping[str, Any]
    bases: tuple[float, ...]
    window: int | None
    quantized: bool


def read_model(seen: Seen) -> Model:
    """What `reason` needs to know; the model is loaded."""
    model = seen.model
    config = model.config.get_text_config(decoder=True)
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return Model(
        ignored=re.compile("|".join(f"({pattern})" for pattern in sorted(patterns))) if patterns else None,
        depth=depth_of(config),
        ahead=frozenset(
            name[: layer.end()]
            for name in seen.unused
            if (layer := LAYER.search(name)) and name[layer.end() :].startswith(AHEAD_MARKS)
        ),
        words=frozenset(word for name in seen.expected for word in name.split(".")),
        buffers={name: buffer for name, buffer in model.named_buffers() if name not in seen.expected},
        bases=tuple(_bases(config)),
        window=getattr(config, "window_size", None),
        quantized=seen.quantizer is not None,
    )


def depth_of(config: Any) -> int | None:
    """Layers that the configuration asks for."""
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"):
        if isinstance(found := getattr(config, name, None), int):
            return found
    return None


def _bases(config: Any) -> Iterator[float]:
    """Every rotary base in a configuration, which may have one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    for table in (rope, *rope.values()) if isinstance(rope, Mapping) else ():
        if isinstance(table, Mapping) and isinstance(base := table.get("rope_theta"), int | float):
            yield float(base)
    if isinstance(base := getattr(config, "rope_theta", None) or getattr(config, "rotary_emb_base", None), int | float):
        yield float(base)


def reason(name: str, stored: Stored, model: Model) -> str | None:
    """Why the model may leave out the tensor `name` of the checkpoint; None: it may not."""
    found = None if stored.value is None else _computed(name, stored, model)
    if found is not None:
        return found
    ahead_of = AHEAD.search(name)
    if ahead_of is not None and ahead_of[2] not in model.words:
        return "a head for several tokens ahead"
    tower = tower_of(name)
    if tower is not None and tower.rpartition(".")[2] not in model.words:
        return TOWER
    layer = LAYER.search(name)
    if layer and model.depth is not None and int(layer[1]) >= model.depth:
        return "a head for several tokens ahead" if name[: layer.end()] in model.ahead else None
    if HEADS.search(name):
        return "a head for something else than the next token"
    if model.quantized and CACHE_SCALES.search(name):
        return "a scale of a quantized cache; the cache here is not quantized"
    if MARKS.search(name) and _count(stored) <= 1:
        return "a mark of the program that wrote the file"
    by_value = stored.value is not None and name.endswith((".bias", "inv_freq", "_cached"))
    if model.ignored is not None and not by_value and model.ignored.search(stored.target):
        return "left out by the model's class"  # values have decided about some, whatever a class says of their names
    return None


def tower_of(name: str) -> str | None:
    """The path of the part for images or sound that a tensor belongs to, None if there is none in its name."""
    words = name.split(".")
    return next((".".join(words[: at + 1]) for at, word in enumerate(words[:3]) if word in TOWERS), None)


def _count(stored: Stored) -> int:
    count = 1
    for size in stored.shape:
        count *= size
    return count


def _computed(name: str, stored: Stored, model: Model) -> str | None:
    """The reason for a buffer that the model computes itself, if its values are those that it would have."""
    value = stored.value.detach().cpu()
    own = model.buffers.get(stored.target)
    if own is not None and not own.is_meta and _agree(value, own):
        return "a buffer that the model computes itself"
    word = name.rpartition(".")[2]
    if word.endswith("inv_freq") and any(_agree(value, other) for other in _frequencies(value.numel(), model)):
        return "rotary frequencies, as the model computes them"
    if word.endswith(("cos_cached", "sin_cached")) and _is_rotation(value, model, sine="sin" in word):
        return "rotary angles, as the model computes them"
    if word.endswith("masked_bias") and value.numel() == 1:
        return "a constant of the causal mask"
    differs = own is not None and not own.is_meta and own.shape == value.shape  # a window where it has none, or none
    if word in ("bias", "causal_mask") and not differs and _is_mask(value, model.window):
        return "a causal mask, as the model computes it"
    if word == "position_ids" and _is_range(value):
        return "the numbers of positions"
    if word.endswith("version") and value.numel() <= 1:
        return "a mark of the program that wrote the file"
    return None


def _agree(one: Any, other: Any) -> bool:
    """Equal but for the rounding of bfloat16."""
    import torch

    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return one.numel() == other.numel() and torch.allclose(one.flatten(), other.flatten(), rtol=8e-3, atol=1e-7)


def _frequencies(count: int, model: Model) -> Iterator[Any]:
    """Rotary frequencies (feature / 2) that the model has, or would have without scaling: base^(-2 i / features)."""
    import torch

    for name, buffer in model.buffers.items():
        if name.endswith("inv_freq") and not buffer.is_meta:
            yield buffer
    for base in model.bases:
        yield base ** -(torch.arange(count, dtype=torch.float64) / count)


def _is_rotation(value: Any, model: Model, *, sine: bool) -> bool:
    """Whether rows (position, feature) are cosines or sines of position times frequency, by the last one."""
    import torch

    table = value.reshape(-1, value.shape[-1]).double()
    row, last = table[-1], len(table) - 1
    for half in {len(row) // 2, len(row)}:
        for frequencies in _frequencies(half, model):
            angles = last * frequencies.double().cpu().flatten()
            turned = torch.sin(angles) if sine else torch.cos(angles)
            if len(turned) == half and torch.allclose(row[:half], turned, atol=2e-2):
                return True
    return False


def _is_mask(value: Any, window: int | None) -> bool:
    """Whether a square is 1 where a key is not after its query (or within `window` before it), and 0 elsewhere."""
    import torch

    if value.ndim < 2 or value.shape[-1] != value.shape[-2] or value.numel() != value.shape[-1] ** 2:
        return False
    found = value.reshape(value.shape[-2:]).to(torch.uint8)
    whole = torch.ones_like(found).tril()
    if not torch.equal(found.to(value.dtype), value.reshape(found.shape)):
        return False
    return torch.equal(found, whole) or (window is not None and torch.equal(found, whole - whole.tril(-window)))


def _is_range(value: Any) -> bool:
    import torch

    flat = value.flatten().double()
    return torch.equal(flat, flat[:1] + torch.arange(len(flat), dtype=torch.float64)) if len(flat) else True
