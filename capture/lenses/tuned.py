"""Tuned lenses of the library tuned-lens: an affine map of each depth before the model's own tail.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens". A folder holds config.json
and params.pt, the state of one linear layer for each depth 0 … L-1; the stream h of a depth becomes h + (A h + b).
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnlens.capture.lenses.choice import CONFIG, LENSES, PARAMETERS, read_config
from attnlens.schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Translators:
    """weight (depth, feature, feature) and bias (depth, feature), for depths 0 … L-1. `source`: the folder's name."""

    source: str
    weight: Tensor
    bias: Tensor | None

    def at(self, depth: int, stream: Tensor) -> Tensor:
        """What the tail reads of residuals (row, feature) at a depth; at the last depth the residuals themselves."""
        if depth >= len(self.weight):
            return stream
        weight = self.weight[depth].to(stream.device)
        wide = torch.promote_types(weight.dtype, stream.dtype)
        moved = stream.to(wide) @ weight.to(wide).T
        if self.bias is not None:
            moved = moved + self.bias[depth].to(stream.device, wide)
        return (stream.to(wide) + moved).to(stream.dtype)

    def hash(self, tail: str) -> str:
        """sha256 over the hash of the model's tail and the translators' numbers."""
        digest = hashlib.sha256(tail.encode())
        for tensor in (self.weight, self.bias):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def read_tuned_lens(folder: Path) -> tuple[Translators, dict[str, Any]]:
    """The translators in a folder, and its config. Nothing in the folder is run.

    Raises:
        InputError: it is no tuned lens; the message says what was found.
    """
    name = f" tuned:{folder}"
    config = read_config(folder)
    try:
        state = torch.load(folder / PARAMETERS, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            LENSES, f"{name}: it has no {PARAMETERS}, expected a folder with {CONFIG} and {PARAMETERS}"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(LENSES, f"{name}: {PARAMETERS} holds something else than tensors ({reason})") from None
    layers, width, bias = config["num_hidden_layers"], config["d_model"], config["bias"]
    expected = {f"{layer}.{part}" for layer in range(layers) for part in (("weight", "bias") if bias else ("weight",))}
    if not isinstance(state, dict) or set(state) != expected:
        found = sorted(map(str, state))[:3] if isinstance(state, dict) else type(state).__name__
        raise InputError(
            LENSES,
            f"{name}: {PARAMETERS} holds {found}, expected {len(expected)} tensors 0.weight … {layers - 1}."
            f"{'bias' if bias else 'weight'}",
        )
    for key in sorted(expected):
        shape = (width, width) if key.endswith("weight") else (width,)
        tensor = state[key]
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            found = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(LENSES, f"{name}: {key} is {found}, expected floating point {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(LENSES, f"{name}: {key} has values that are not finite")
    weight = torch.stack([state[f"{layer}.weight"] for layer in range(layers)])
    offset = torch.stack([state[f"{layer}.bias"] for layer in range(layers)]) if bias else None
    return Translators(source=folder.resolve().name, weight=weight, bias=offset), config


def check_fit(
    folder: Path, translators: Translators, config: dict[str, Any], *, head: nn.Module, n_layer: int, n_feature: int
) -> None:
    """See that a tuned lens was made for this model.

    Raises:
        InputError: it has other sizes, or was tuned for another unembedding.
    """
    name = f" tuned:{folder}"
    depths, width = translators.weight.shape[:2]
    if (depths, width) != (n_layer, n_feature):
        raise InputError(
            LENSES,
            f"{name} was tuned for {depths} layers and a stream {width} wide, the model has {n_layer} and {n_feature}",
        )
    stated = config.get("unembed_hash")
    if not stated:
        return
    found = unembedding_hash(name, head)
    if stated != found:
        base = config.get("base_model_name_or_path") or "another model"
        raise InputError(
            LENSES,
            f"{name} was tuned for the unembedding of {base} with hash {str(stated)[:12]}…, this model's is "
            f"{found[:12]}…; its readings would mean nothing here",
        )


def unembedding_hash(name: str, head: nn.Module) -> str:
    """The hash by which tuned-lens knows an unembedding: sha256 of how numpy prints the matrix with one decimal.

    Only the corners of a large matrix are printed, so that the hash is the same in every dtype.

    Raises:
        InputError: the head has no matrix that could be compared.
    """
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta:
        raise InputError(
            LENSES, f"{name}: the model's head ({type(head).__name__}) has no matrix at hand to compare hashes"
        )
    values = weight.detach()
    values = values.float() if values.dtype == torch.bfloat16 else values
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75, suppress=False, floatmode="maxprec", sign="-"):
        text = np.array_str(values.cpu().numpy(), precision=1)
    return hashlib.sha256(text.encode()).hexdigest()
