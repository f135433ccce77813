"""Does the loader take a class's own folder as it is, and refuse it with a tensor too many?

To the tensors of a tiny saved model are added, one at a time, a bias beside a real weight of a decoder layer, and a
copy of a decoder layer under the next number. A loader that takes either would run another model than the file holds.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from attnlens.capture.models import load
from attnlens.schemas.errors import ModelError

LAYER = re.compile(r"^(.*?\b(?:layers?|h|blocks?|block)\.)(\d+)(\..*)$")
WEIGHTS = "model.safetensors"


def unused_refused(model: Any, tokenizer: Any, folder: Path) -> str:
    """`yes`; beginning with `no`, what the loader did instead; or why it could not be asked.

    Args:
        model: a causal language model, tiny, in float32.
        tokenizer: any that can be saved.
        folder: an empty one; it is written to.
    """
    clean = folder / "clean"
    model.save_pretrained(clean)
    tokenizer.save_pretrained(clean)
    _name_class(clean, model)
    try:
        left_out = load(str(clean), device="cpu").left_out
    except ModelError as refusal:
        if not _loads(clean):
            return "transformers cannot load its folder"
        return f"no: the clean folder is refused: {refusal}"
    if left_out:
        return f"no: of the clean folder {left_out[0].tensors} was left out"
    state = load_file(clean / WEIGHTS)
    for what, added in (("a bias", one_bias(state)), ("a layer", one_layer(state))):
        if not added:
            return f"no: there is no place for {what}"
        spoiled = folder / what.split()[-1]
        shutil.copytree(clean, spoiled)
        save_file({**state, **added}, spoiled / WEIGHTS, metadata={"format": "pt"})
        try:
            load(str(spoiled), device="cpu")
        except ModelError as refusal:
            if not any(name in str(refusal) for name in added):
                return f"no: {what} too many is refused without its name: {refusal}"
        else:
            return f"no: {what} too many ({next(iter(added))}) is loaded without a word"
    return "yes"


def _loads(folder: Path) -> bool:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except ValueError:  # a text part alone, whose configuration no automatic class is for
        return False
    return True


def _name_class(folder: Path, model: Any) -> None:
    """A configuration alone, from which the model was made, does not say which class it is of."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "architectures": [type(model).__name__]}
    path.write_text(json.dumps(config), encoding="utf-8")


def one_bias(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A bias for the first matrix of a layer that has none, by the name that it would have; or a scale."""
    for name, tensor in state.items():
        bias = name.removesuffix("weight") + "bias"
        if LAYER.match(name) and name.endswith(".weight") and tensor.ndim == 2 and bias not in state:
            return {bias: torch.ones(tensor.shape[0])}
    for name in state:  # every matrix has one: a scale, as of quantized weights
        if LAYER.match(name) and name.endswith(".weight"):
            return {f"{name}_scale": torch.tensor(0.5)}
    return {}


def one_layer(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of the last layer under the next number."""
    found = [match for name in state if (match := LAYER.match(name))]
    if not found:
        return {}
    prefix = max((match[1] for match in found), key=[match[1] for match in found].count)
    last = max(int(match[2]) for match in found if match[1] == prefix)
    return {
        f"{prefix}{last + 1}{match[3]}": state[match[0]].clone()
        for match in found
        if match[1] == prefix and int(match[2]) == last
    }
