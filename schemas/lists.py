"""The lists of a store that may be in arrays: the index of its captures, and the prompts that were given together.

Pure: names, axes, dtypes. `docs/format.md` has the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ListName = Literal["index", "batches"]
ListAxis = Literal["capture", "prompt", "batch"]
"""capture: those that the index tells of; prompt: all prompts of all batches, in order; batch: the batches."""

CHUNK_ENTRIES = 1 << 14
"""The most entries in one chunk."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One array of a list, along one axis."""

    name: str
    axis: ListAxis
    dtype: Literal["string", "int32"]
    meaning: str


def _texts(axis: ListAxis, **meanings: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, axis=axis, dtype="string", meaning=meaning) for name, meaning in meanings.items())


def _numbers(axis: ListAxis, **meanings: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, axis=axis, dtype="int32", meaning=meaning) for name, meaning in meanings.items())


LISTS: Mapping[ListName, tuple[Column, ...]] = {
    "index": (
        *_texts(
            "capture",
            id="name of the capture",
            prompt_id="what the user calls its prompt; empty: nothing",
            status="planned, partial, complete or failed",
            prompt="first 256 characters of the prompt, the last one … where there are more",
            completion="the same of the generated text",
            digest="digest of the capture's zarr.json; empty: it has none",
            model="id of the model",
            label="what tells captures of one model apart; empty: nothing",
            changes="what changed the model, as its name says it; empty: nothing",
        ),
        *_numbers("capture", n_prompt="tokens of the prompt", n_token="tokens of prompt and generation"),
    ),
    "batches": (
        *_texts(
            "prompt",
            capture="name of the capture",
            prompt_id="what the user calls the prompt",
            sha256="hash over everything that was asked of it",
        ),
        *_texts("batch", settings="what its prompts share, as JSON", run="the run that wrote last; empty: unknown"),
        *_numbers("batch", count="how many of the prompts, from where the batch before ends"),
    ),
}
