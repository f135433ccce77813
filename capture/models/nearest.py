"""Which model was probably meant by a name that is none: built in, beside it, or in the hub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attnlens.capture.models.request import Request
from attnlens.schemas.nearest import did_you_mean


def nearest_model(request: Request) -> str:
    """The end of a message, as `did_you_mean`."""
    from attnlens.capture.models.builtin import NAME

    path = request.path
    written = request.name[: len(request.name) - len(path.name)]  # as ./ or models/
    beside = [one.name for one in _entries(path.parent) if _may_be_model(one)]
    return did_you_mean(path.name, beside, before=written) or did_you_mean(request.name, [NAME, *_cached()])


def _cached() -> Iterator[str]:
    """Names of models in the hub's cache on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in _entries(Path(HF_HUB_CACHE)):
        if path.name.startswith("models--"):
            yield path.name.removeprefix("models--").replace("--", "/", 1)


def _may_be_model(path: Path) -> bool:
    return path.suffix == ".gguf" or (path / "config.json").is_file() or (path / "params.json").is_file()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
