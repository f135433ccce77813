"""`--lens`: which lenses read the residual stream, and what they are called in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.capture.hub_files import on_this_machine
from attnlens.schemas.errors import InputError, Setting
from attnlens.store.places.hub import is_hub_name

LENSES = Setting("lenses")
LOGIT, TUNED = "logit", "tuned"
KIND = "linear_tuned_lens"
CONFIG, PARAMETERS = "config.json", "params.pt"
CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LensChoice:
    """A lens that was asked for; `folder` of a tuned one."""

    name: str
    folder: Path | None = None
    source: str | None = None
    """Its name on the hub, where it is from there."""


def choose_lenses(wanted: Sequence[str], taken: Sequence[str] = ()) -> list[LensChoice]:
    """The lenses that texts such as `logit` and `tuned:FOLDER` name, the first one first.

    Several tuned lenses are called tuned, tuned2, tuned3; `taken` are names that the store has already.

    Raises:
        InputError: there is no such lens, or it is there twice.
    """
    choices: list[LensChoice] = []
    for text in wanted:
        kind, _, folder = text.partition(":")
        names = [*taken, *(choice.name for choice in choices)]
        if kind == LOGIT and not folder:
            if LOGIT in names:
                raise InputError(LENSES, " logit: it is there already")
            choices.append(LensChoice(name=LOGIT))
        elif kind == TUNED and folder:
            number = next(n for n in range(1, len(names) + 2) if _numbered(n) not in names)
            remote = is_hub_name(folder)
            place = on_this_machine(folder, (CONFIG, PARAMETERS)) if remote else Path(folder).expanduser()
            choices.append(LensChoice(name=_numbered(number), folder=place, source=folder if remote else None))
        else:
            expected = "expected logit, or tuned:FOLDER (a lens of tuned-lens, also hf://OWNER/NAME[/PATH][@REVISION])"
            raise InputError(LENSES, f" {text!r} is not known: {expected}")
    return choices


def _numbered(number: int) -> str:
    return TUNED if number == 1 else f"{TUNED}{number}"


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a tuned lens: d_model, num_hidden_layers, bias, unembed_hash, base_model_name_or_path.

    Raises:
        InputError: the folder holds no tuned lens.
    """
    name = f" tuned:{folder}"
    if not folder.is_dir():
        raise InputError(LENSES, f"{name}: there is no such folder, expected one with {CONFIG} and {PARAMETERS}")
    path = folder / CONFIG
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise InputError(LENSES, f"{name}: {CONFIG} is larger than {CONFIG_BYTES} bytes")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(LENSES, f"{name}: {CONFIG} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(LENSES, f"{name}: {CONFIG} is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(LENSES, f"{name}: {CONFIG} holds {type(config).__name__}, expected an object")
    config = {"lens_type": KIND, "bias": True, "unembed_hash": None, **config}
    if config["lens_type"] != KIND:
        raise InputError(LENSES, f"{name}: lens_type is {config['lens_type']!r}, expected {KIND!r}")
    for key in ("d_model", "num_hidden_layers"):
        if not isinstance(config.get(key), int) or isinstance(config[key], bool) or config[key] < 1:
            raise InputError(LENSES, f"{name}: {key} is {config.get(key)!r}, expected a number of 1 or more")
    if not isinstance(config["bias"], bool):
        raise InputError(LENSES, f"{name}: bias is {config['bias']!r}, expected true or false")
    return config
