"""The weight files of a folder in Hugging Face's layout: all there, and whole? Asked before torch is imported."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from attnlens.capture.models.failure import one_line
from attnlens.schemas.errors import ModelError

# In the order in which transformers looks.
LAYOUTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Return if every weight file is there, none is cut short, and no tensor is in two of them. No value is read.

    Raises:
        ModelError: names the file.
    """
    named = config.get("transformers_weights")
    layouts = (*((named,) if isinstance(named, str) else ()), *LAYOUTS)
    first = next((folder / name for name in layouts if (folder / name).is_file()), None)
    if first is None:
        raise ModelError(f"no weights in {folder}: expected one of {', '.join(LAYOUTS)}")
    places: dict[str, Path] = {}
    for path in _shards(first) if first.suffix == ".json" else [first]:
        if path.suffix != ".safetensors":
            check_torch_file(path)
            continue
        for name in check_safetensors(path):
            if places.setdefault(name, path) != path:
                raise ModelError(
                    f"{name} is in both {places[name].name} and {path.name} of {folder}: remove one of them"
                )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ModelError(f"{index} cannot be read: {one_line(error)}") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files are missing in {index.parent}: {', '.join(missing[:3])}"
        )
    return [index.parent / name for name in names]


def check_safetensors(path: Path) -> list[str]:
    """The names of the tensors, if the header is whole and the file as long as it says.

    Raises:
        ModelError: it is not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or cut short: {one_line(error)}") from error


def check_torch_file(path: Path) -> None:
    """Return if a file of torch.save is whole as far as its container tells.

    Raises:
        ModelError: it is not.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if not start or (start.startswith(b"PK") and not zipfile.is_zipfile(path)):
        raise ModelError(f"{path} is damaged or cut short ({path.stat().st_size} bytes): fetch it again")
