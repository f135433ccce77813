"""Tokens that stand for an image, a sound or a film, which a text run cannot put in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from attnlens.schemas.errors import InputError

MEDIA = "image|img|video|audio|speech|vision|media"
FIELD = re.compile(
    rf"(?:\w+_)?({MEDIA})(?:_(?:context|patch|pad|soft|prompt|latent|placeholder))*(?:_token_(?:id|index|idx)|_patch_id)"
)
"""Fields of a config that name a placeholder. Marks of beginning and end (`image_start_token_id`, `boi_token_id` …) are
ordinary tokens."""
NAMES = {"img": "image", "vision": "image or video", "media": "media", "speech": "audio"}


def refuse_placeholders(model: Any, tokenizer: Any, ids: Sequence[int]) -> None:
    """Return if no token of a text is one that the model's config, or the tokenizer, calls a placeholder.

    Raises:
        InputError: names the id, where it stands, and the field that says so.
    """
    named = ((f"{medium}_token_id", getattr(tokenizer, f"{medium}_token_id", None)) for medium in MEDIA.split("|"))
    for field, token in (*_placeholders(getattr(model, "config", None)), *named):
        if token is not None and token in ids:
            kind = FIELD.fullmatch(field)
            medium = NAMES.get(kind[1], kind[1]) if kind else "media"
            raise InputError(
                f"token {list(ids).index(token)} has id {token}, which stands for {medium} input in this model "
                f"({field}), and none is fed: only text can be captured, leave it out"
            )


def keep_placeholders(model: Any, config: Any) -> None:
    """Let a model that was loaded without its towers know the placeholders that the whole one's `config` names."""
    if model.config is not config:
        known = {token for _, token in _placeholders(model.config)}
        for field, token in _placeholders(config):
            if token not in known:
                setattr(model.config, field, token)


def _placeholders(config: Any) -> Iterator[tuple[str, int]]:
    """Fields of a config and of those in it, and the ids they hold."""
    if config is None:
        return
    for name, value in vars(config).items():
        if FIELD.fullmatch(name) and isinstance(value, int) and not isinstance(value, bool):
            yield name, value
        elif name.endswith("_config") and hasattr(value, "__dict__"):
            yield from _placeholders(value)
