"""What is refused of one prompt, and what of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from attnlens.capture.batch.asked import Asked
from attnlens.capture.plan import Plan
from attnlens.capture.prompt import Prompt
from attnlens.schemas.errors import InputError, MissingExtraError, ModelError

Refusal = (InputError, ModelError, MissingExtraError)
"""What is said of one prompt in words of ours, and leaves the others alone. So does any other error in the code of a
model or a tokenizer, see `many.py`."""


def refuse_if_none(asked: Sequence[Asked], check: Callable[[Asked], object]) -> None:
    """Refuses a run in which the generation settings of every prompt are refused by `check`, before anything is begun.

    Raises:
        InputError: a setting that was given cannot be used.
        ModelError: the model's own ask for something that is not done here.
    """
    refusals: dict[str, Exception | None] = {}
    for one in (one for one in asked if one.problem is None):
        same = json.dumps([one.generation.overrides, one.generation.temperature == 0], sort_keys=True)
        if same not in refusals:
            try:
                check(one)
                return
            except Refusal as error:
                refusals[same] = error
    first = next(iter(refusals.values()), None)
    if first is not None:
        raise first


def going_on(one: Asked, ids: Sequence[int]) -> Plan:
    """How a prompt goes on, after other ids than its own."""
    given = one.token_ids if one.completion is None else ()
    return Plan(prompt=Prompt("", list(ids)), given=given, max_new_tokens=one.generation.max_new_tokens)
