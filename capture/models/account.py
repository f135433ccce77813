"""Is every tensor of a checkpoint in the model, and every weight of the model from the checkpoint?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from attnlens.capture.models.left_out import LAYER, TOWER, Model, read_model, reason, tower_of
from attnlens.capture.models.watch import FLOATS, Seen, Stored, Watch
from attnlens.schemas.errors import InputError, ModelError, Setting
from attnlens.schemas.metadata import LeftOut

SCALES = re.compile(r"scale|zero_point|qweight|qzeros|g_idx|absmax|packed|quant|\.SCB$")

NO_SCALE = re.compile(r"bias$|(input|activation|output)_scale(_inv)?$|\.(k|v)_scale$")
"""Names beside codes that do not say what these stand for: scales of what goes in and out, and biases."""


def account(name: str, watch: Watch, ignored: Sequence[str] = ()) -> tuple[LeftOut, ...]:
    """What of the checkpoint is not in the model, and why that is right.

    Args:
        name: of the model, for what is said.
        watch: has seen the model being loaded; the first checkpoint is its own.
        ignored: patterns of tensors that may be left out in any case.

    Raises:
        ModelError: a tensor is not used, is stored in a way that was not understood, or a weight had to be made up.
        InputError: a pattern matches no tensor that is left out.
    """
    if not watch.seen:
        raise ModelError(f"{name} loads its weights by code of its own, so nobody can say whether all of them are used")
    seen = watch.seen[0]
    _refuse_dtypes(name, seen)
    _refuse_twins(name, seen)
    unused = {tensor: seen.stored.get(tensor, Stored(tensor, "", ())) for tensor in seen.unused}
    model = read_model(seen)
    reasons: dict[str, str] = {}
    for tensor in unused:
        asked = next((pattern for pattern in ignored if fnmatchcase(tensor, pattern)), None)
        why = f"ignored on request: {asked}" if asked is not None else reason(tensor, unused[tensor], model)
        if why is not None:
            reasons[tensor] = why
    foreign = [tensor for tensor in unused if tensor not in reasons]
    _require_all(name, seen, foreign)
    if foreign:
        raise ModelError(*_unused(name, seen, foreign, model))
    for pattern in ignored:
        if not any(fnmatchcase(tensor, pattern) for tensor in unused):
            raise InputError(
                Setting("ignore_weights"), f" {pattern} matches no tensor that {name} leaves out{_listed(unused)}"
            )
    return grouped(reasons)


def grouped(reasons: dict[str, str]) -> tuple[LeftOut, ...]:
    """Names that differ in their numbers only become one, and so do those of a whole tower."""
    counts = Counter(
        (f"{tower_of(tensor)}.*" if why == TOWER else re.sub(r"\d+", "*", tensor), why)
        for tensor, why in reasons.items()
    )
    return tuple(LeftOut(tensors=tensors, count=count, reason=why) for (tensors, why), count in counts.items())


def three(names: Iterable[str]) -> str:
    """Up to three names, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _listed(names: Iterable[str]) -> str:
    return f" (these are: {three(names)})" if names else ": it leaves out none"


def _refuse_dtypes(name: str, seen: Seen) -> None:
    """Numbers of another kind than the weight's stand for others, by scales that nobody would multiply with."""
    coded = {
        tensor: stored
        for tensor, stored in seen.stored.items()
        if stored.target in seen.expected and seen.expected[stored.target][0] in FLOATS and stored.dtype not in FLOATS
    }
    if seen.quantizer is not None and getattr(seen.quantizer, "pre_quantized", True):
        if alone := {tensor: stored for tensor, stored in coded.items() if not _has_scales(tensor, seen)}:
            kinds = ", ".join(sorted({stored.dtype for stored in alone.values()}))
            raise ModelError(
                f"{name} stores {three(alone)} as {kinds} with no scales beside, which its quantizer cannot unpack: "
                "the checkpoint does not fit its config, or is damaged"
            )
        return
    if coded:
        scales = [tensor for tensor in seen.unused if SCALES.search(tensor)]
        beside = f" with scales beside ({three(scales)})" if scales else ""
        kinds = ", ".join(sorted({stored.dtype for stored in coded.values()}))
        raise ModelError(
            f"{name} stores {three(coded)} as {kinds}{beside}, and its config has no quantization_config that "
            "transformers knows: fetch the unquantized checkpoint, or one that transformers can read"
        )


def _has_scales(tensor: str, seen: Seen) -> bool:
    """Whether the module of a tensor has another one that may say what its codes stand for."""
    place = tensor.rpartition(".")[0] + "."
    return any(other.startswith(place) and other != tensor and not NO_SCALE.search(other) for other in seen.stored)


def _refuse_twins(name: str, seen: Seen) -> None:
    for one, other in seen.twins:
        target = seen.stored[one].target
        raise ModelError(f"{name} holds both {one} and {other}, which differ, for the one weight {target} of the model")


def _require_all(name: str, seen: Seen, foreign: list[str]) -> None:
    """Every weight of the model was in the checkpoint, or is the same as one that was.

    transformers fills what is missing at random, and some classes do not want to hear of it.
    """
    reported = set(seen.info.missing_keys)
    mismatched = {key if isinstance(key, str) else key[0] for key in seen.info.mismatched_keys}
    made_up = {tensor for tensor in seen.absent - reported if not _from_elsewhere(tensor, seen)}
    for what, keys in (("missing", reported | made_up), ("mismatched", mismatched | _misshapen(seen))):
        if keys:
            problem = "has no weights for" if what == "missing" else "has weights of another shape for"
            instead = f" (it holds {three(foreign)} instead)" if foreign and what == "missing" else ""
            raise ModelError(
                f"{name} {problem} {three(keys)}{instead}: the checkpoint does not fit its config{_advice(foreign)}"
            )


def _advice(foreign: list[str]) -> str:
    if any(SCALES.search(tensor) for tensor in foreign):
        return "; the weights look quantized, and there is no quantization_config that transformers knows"
    return ""


def _from_elsewhere(tensor: str, seen: Seen) -> bool:
    """Whether a tensor that the checkpoint lacks is tied to one that it has, or a buffer that the model computes."""
    from torch import nn

    model = seen.model
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    there = set(seen.expected) - seen.absent
    if tied.get(tensor) in there or any(source == tensor and one in there for one, source in tied.items()):
        return True
    siblings = [one for one, source in tied.items() if source == tied.get(tensor)]
    if any(one in there for one in siblings):
        return True
    try:
        own = model.get_parameter_or_buffer(tensor)
        if not isinstance(own, nn.Parameter):
            return True
        return any(model.get_parameter_or_buffer(other) is own for other in there)
    except AttributeError:  # a quantizer has put something else in its place
        return seen.quantizer is not None


def _misshapen(seen: Seen) -> set[str]:
    """Weights that are quantized while they are read keep the shape of the file, whatever the config asks for."""
    if seen.quantizer is None or getattr(seen.quantizer, "pre_quantized", True):
        return set()
    return {
        stored.target
        for tensor, stored in seen.stored.items()
        if tensor not in seen.unused
        and stored.target == tensor
        and seen.expected[stored.target][1] != (stored.shape[::-1] if _turned(tensor, seen) else stored.shape)
    }


def _turned(tensor: str, seen: Seen) -> bool:
    """Whether a weight is turned over while it is quantized: GPT-2 keeps (in, out), a linear layer (out, in)."""
    from transformers.pytorch_utils import Conv1D

    module = seen.model.get_submodule(tensor.rpartition(".")[0])
    source = getattr(module, "source_cls", None)
    return tensor.endswith(".weight") and isinstance(source, type) and issubclass(source, Conv1D)


def _unused(name: str, seen: Seen, foreign: list[str], model: Model) -> tuple[str, ...]:
    """The refusal: which tensors, and what they point to."""
    layers = {int(match[1]) for tensor in foreign if (match := LAYER.search(tensor))}
    if any(SCALES.search(tensor) for tensor in foreign):
        why = "they look like scales of quantized weights, and there is no quantization_config that applies them"
    elif model.depth is not None and any(layer >= model.depth for layer in layers):
        why = f"its config has {model.depth} layers, and the checkpoint a layer {max(layers)}"
    elif all(tensor.endswith(("inv_freq", "_cached")) for tensor in foreign):
        why = "it gives other rotary frequencies"
    elif all(tensor.endswith("bias") for tensor in foreign):
        why = "its config asks for no such bias"
    else:
        why = "its config does not ask for them"
    tensors = f"{len(foreign)} tensor{'s' if len(foreign) > 1 else ''}"
    problem = (
        f"{name} holds {tensors} that {type(seen.model).__name__} does not use: {three(foreign)}. The checkpoint does "
        f"not fit its config ({why}); if the model is right without them: "
    )
    return (
        problem,
        Setting("ignore_weights=[PATTERN]", "--ignore-weights PATTERN"),
    )
