"""What is to be captured: the text, how it goes on, and whether the model can take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from attnlens.capture.configuration import text_config
from attnlens.capture.prompt import Prompt, build_prompt, check_ids, encode_completion
from attnlens.capture.prompt_options import PromptOptions
from attnlens.schemas.errors import InputError

Seam = Literal["clean", "prompt", "whole"]

Text = str | Sequence[Mapping[str, Any]] | Sequence[int]
"""A prompt: text, chat messages, or token ids."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be captured: the text, and how it goes on.

    `seam`: how a given completion was joined to the prompt. `notes`: remarks for the store.
    """

    prompt: Prompt
    given: tuple[int, ...] | None
    max_new_tokens: int
    seam: Seam | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_prompt(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt.ids)

    @property
    def capacity(self) -> int:
        """Tokens that the timeline can grow to."""
        return self.n_prompt + (self.max_new_tokens if self.given is None else len(self.given))


def read_prompt(tokenizer: Any, prompt: Text, options: PromptOptions) -> Prompt:
    """The prompt as ids, whatever it was given as.

    Raises:
        InputError: it is empty, mixed, or not what the tokenizer's chat template takes.
    """
    if isinstance(prompt, str):
        return build_prompt(tokenizer, text=prompt, system=options.system, raw=options.raw)
    if prompt and all(isinstance(item, int) for item in prompt):
        ids = [int(item) for item in prompt if isinstance(item, int)]
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        return Prompt(text.encode("utf-8", "replace").decode("utf-8"), ids)
    messages = [dict(item) for item in prompt if isinstance(item, Mapping)]
    if not messages or len(messages) != len(prompt):
        raise InputError("the prompt is empty or mixed, expected text, a list of messages, or a list of token ids")
    return build_prompt(tokenizer, messages=messages, system=options.system, raw=options.raw)


def plan_capture(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    completion: str | None,
    token_ids: Sequence[int] | None,
    max_new_tokens: int,
    options: PromptOptions,
) -> Plan:
    """Checks the text against the model's vocabulary and context; cuts the generation to what the context holds.

    Raises:
        InputError: ids outside the vocabulary, a text longer than the context, or two continuations.
    """
    if completion is not None and token_ids is not None:
        raise InputError("both a completion and token ids were given; expected one of them")
    given = None
    if completion is not None:
        given = tuple(encode_completion(tokenizer, completion))
    elif token_ids is not None:
        given = tuple(int(token) for token in token_ids)
    config = text_config(model)
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int):
        check_ids([*prompt.ids, *(given or ())], size)
    context = getattr(config, "max_position_embeddings", None)
    if isinstance(context, int) and context > 0:
        length = len(prompt.ids) + len(given or ())
        if length > context:
            raise InputError(
                f"the {'text' if given else 'prompt'} is {length} tokens long, the model's context holds {context}; "
                "shorten it"
            )
        # The last generated token is never fed, hence one more than the context has room for.
        max_new_tokens = min(max_new_tokens, context - len(prompt.ids) + 1)
    return Plan(prompt=prompt, given=given, max_new_tokens=max_new_tokens)
