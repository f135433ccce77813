"""What transformers drops while it reads a checkpoint's generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "generation_config.json"


def keep_dropped(settings: Any, folder: Path | None) -> None:
    """Give generation settings what stands in the file of `folder` and is not in them.

    A field that the installed version does not know is kept by transformers, and dropped where the file says
    `_from_model_config`, as it does itself for most checkpoints. What is gone could not be refused by name.
    """
    try:
        found = {} if folder is None else json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or transformers has said what is wrong with it
        return
    for name, value in found.items():
        if settings is not None and not name.startswith("_") and name not in vars(settings):
            setattr(settings, name, value)
