"""How the words of a prompt become tokens: the template, what it is given, and where a given answer begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnlens.schemas.errors import InputError

SEAMS = ("prompt", "whole")


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The same for every prompt of a run, unless a prompt says otherwise.

    Attributes:
        system: a system message before a text prompt.
        raw: feed texts as they are, without the chat template.
        tools: descriptions of tools for the chat template, as JSON objects.
        continue_last: the last message is the assistant's and is continued instead of answered.
        seam: where a given completion begins when the tokenizer joins it with the prompt: `prompt` keeps the prompt's
            tokens, `whole` takes the tokens of the whole text.
    """

    system: str | None = None
    raw: bool = False
    tools: tuple[Mapping[str, Any], ...] | None = None
    continue_last: bool = False
    seam: str = "prompt"

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            InputError: as said.
        """
        if self.seam not in SEAMS:
            raise InputError(f"seam is {self.seam!r}, expected {' or '.join(SEAMS)}")
        if self.raw and (self.tools is not None or self.continue_last):
            raise InputError("tools and a message to continue need the chat template, but raw was asked for")
