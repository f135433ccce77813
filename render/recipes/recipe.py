"""A picture's recipe: what it shows of which capture, as JSON that travels inside the picture.

Two pictures with the same recipe and the same `software` have the same bytes. Nothing in it says where a store was, or
how many processes drew it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attnlens import __version__
from attnlens.render.options import RenderOptions
from attnlens.schemas.errors import InputError
from attnlens.store.naming import told

if TYPE_CHECKING:
    from attnlens.store.reader import Capture

VERSION = 1
LIMIT = 1 << 20
"""Characters of the longest recipe that is read."""

HOW_NOT_WHAT = frozenset({"capture", "queries", "workers", "resume", "engine", "gallery"})
"""Options that say what else is drawn, and by whom: no picture depends on them."""


def identity(capture: Capture) -> str:
    """What tells a capture from any other: the digest of its metadata, which cover every file.

    A capture that may still grow has no digest; its beginning stands in, which stays.
    """
    about = capture.metadata
    if about.crop is not None and about.crop.origin is not None:
        return about.crop.origin  # what is there of it is drawn as from the original
    if about.digest is not None:
        return about.digest
    start = json.dumps([about.id, about.created, about.model.id, about.n_prompt, about.prompt])
    return "started:" + hashlib.sha256(start.encode()).hexdigest()


def of_run(capture: Capture, options: RenderOptions) -> dict[str, Any]:
    """What all pictures of a run have in their recipe; each adds its own query and columns."""
    return {
        "recipe": VERSION,
        "software": f"attnlens {__version__}",
        "store": identity(capture),
        "capture": capture.id,
        "model": capture.metadata.model.id,
        **told(capture.metadata),
        "options": {key: value for key, value in _values(options).items() if key not in HOW_NOT_WHAT},
    }


def options_of(recipe: Mapping[str, Any]) -> RenderOptions:
    """The options that draw the picture of a recipe again, and some pictures beside it perhaps.

    Raises:
        InputError: the recipe asks for what this version does not know.
    """
    wanted = dict(recipe["options"])
    if isinstance(recipe.get("queries"), str):
        wanted["queries"] = recipe["queries"]
    elif isinstance(recipe.get("query"), int):
        wanted["queries"] = str(recipe["query"])
    defaults = _values(RenderOptions())
    unknown = sorted(key for key in wanted if key not in defaults or key in HOW_NOT_WHAT - {"queries"})
    if unknown:
        raise InputError(
            f"the picture was drawn by {recipe['software']} with {', '.join(unknown)}, which this version "
            f"({__version__}) does not know"
        )
    for key, value in wanted.items():
        if type(value) is not type(defaults[key]) and defaults[key] is not None and value is not None:
            raise InputError(f"the recipe in the picture is damaged: {key} is {value!r}")
    return RenderOptions(**wanted, capture=str(recipe["capture"]))


def to_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as one line of ASCII JSON, the same for equal recipes."""
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def from_text(text: str) -> dict[str, Any]:
    """The recipe that `text` holds.

    Raises:
        InputError: it holds none, or one of a later kind.
    """
    try:
        found = json.loads(text) if len(text) <= LIMIT else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), int):
        raise InputError("the recipe in the picture is damaged")
    if found["recipe"] != VERSION:
        raise InputError(
            f"the picture was drawn by {found.get('software')}: its recipe is of kind {found['recipe']}, this version "
            f"({__version__}) reads {VERSION}"
        )
    expected = {"software": str, "store": str, "capture": str, "options": dict}
    if any(not isinstance(found.get(key), kind) for key, kind in expected.items()):
        raise InputError("the recipe in the picture is damaged")
    return found


def _values(options: RenderOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
