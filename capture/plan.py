"""What is to be captured: the text, how it goes on, and whether the model can take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attnlens.capture.configuration import text_config
from attnlens.capture.losses import losses
from attnlens.capture.placeholders import refuse_placeholders
from attnlens.capture.prompt import Prompt, build_prompt, check_ids, fed_prompt
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.seam import Seam, join
from attnlens.schemas.errors import InputError

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
    if not isinstance(prompt, str) and prompt and all(isinstance(item, int) for item in prompt):
        if options.continue_last or options.tools is not None:
            raise InputError("tools and a message to continue need the chat template, but the prompt is token ids")
        return fed_prompt(tokenizer, [int(item) for item in prompt if isinstance(item, int)])
    messages = None if isinstance(prompt, str) else [dict(item) for item in prompt if isinstance(item, Mapping)]
    if messages is not None and (not messages or len(messages) != len(prompt)):
        raise InputError("the prompt is empty or mixed, expected text, a list of messages, or a list of token ids")
    return build_prompt(
        tokenizer,
        text=prompt if isinstance(prompt, str) else None,
        messages=messages,
        system=options.system,
        raw=options.raw,
        tools=options.tools,
        continue_last=options.continue_last,
    )


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
    given: tuple[int, ...] | None = None
    seam: Seam | None = None
    text = prompt.text + (completion or "")
    if completion is not None:
        joined = join(tokenizer, prompt, completion, options.seam)
        prompt, given, seam = joined.prompt, joined.given, joined.seam
    elif token_ids is not None:
        given = tuple(int(token) for token in token_ids)
    config = text_config(model)
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int):
        check_ids([*prompt.ids, *(given or ())], size)
    refuse_placeholders(model, tokenizer, [*prompt.ids, *(given or ())])
    notes = prompt.notes if prompt.fed else (*prompt.notes, *losses(tokenizer, text, [*prompt.ids, *(given or ())]))
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
    return Plan(prompt=prompt, given=given, max_new_tokens=max_new_tokens, seam=seam, notes=notes)
