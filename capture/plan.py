"""What is to be captured: the text, how it goes on, and whether the model can take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

from torch import nn

from attnlens.capture.configuration import text_config
from attnlens.capture.context import Wall, context_of
from attnlens.capture.losses import losses
from attnlens.capture.placeholders import refuse_placeholders
from attnlens.capture.prompt import Prompt, build_prompt, check_ids, check_tokenizer_kind, fed_prompt, ids_of
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.rope import rope_of, turns_at
from attnlens.capture.seam import Seam, join
from attnlens.schemas.errors import InputError, Setting

Text = str | Sequence[Mapping[str, Any]] | Sequence[int]
"""A prompt: text, chat messages, or token ids."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be captured: the text, and how it goes on.

    `seam`: how a given completion was joined to the prompt. `notes`: remarks for the store, as far as they are known
    before. `wall`: what cuts the generation; `stated`: the context that the configuration states, and by which name;
    `rope`: how positions go on beyond that; `turn`: the token at which its frequencies become others.
    """

    prompt: Prompt
    given: tuple[int, ...] | None
    max_new_tokens: int
    seam: Seam | None = None
    notes: tuple[str, ...] = ()
    wall: Wall | None = None
    stated: tuple[str, int] | None = None
    rope: str | None = None
    turn: int | None = None

    @property
    def n_prompt(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt.ids)

    @property
    def n_text(self) -> int:
        """Tokens that are known before anything runs."""
        return self.n_prompt + len(self.given or ())

    @property
    def capacity(self) -> int:
        """Tokens that the timeline can grow to."""
        return self.n_prompt + (self.max_new_tokens if self.given is None else len(self.given))

    def notes_before(self) -> list[str]:
        """What there is to say before anything runs: remarks on the text as long as it may become."""
        fed = self.capacity if self.given is not None else max(self.n_text, self.capacity - 1)
        beyond = _beyond(self.stated, fed, self.rope, may=self.given is None)
        notes = [note for note in self.notes if note not in _beyond(self.stated, self.n_text, self.rope)] + [*beyond]
        notes += self._turned(fed)
        if self.wall is not None and self.given is None:
            notes.append(f"stops at the end of the model's context of {self.wall.n_token} tokens: {self.wall.what}")
        return notes

    def notes_after(
        self, n_fed: int, n_token: int, *, ended: bool, dropped: Sequence[int], made_again: bool
    ) -> list[str]:
        """All remarks, once the text is there.

        `ended`: by the model. `dropped`: tokens at which it dropped its keys; `made_again`: it fed the text anew then.
        """
        notes = [note for note in self.notes if note not in _beyond(self.stated, self.n_text, self.rope)]
        notes += _beyond(self.stated, n_fed, self.rope)
        notes += [] if dropped else self._turned(n_fed)
        if self.wall is not None and self.given is None and not ended and n_token == self.capacity:
            notes.append(f"stopped at the end of the model's context of {self.wall.n_token} tokens: {self.wall.what}")
        if dropped:
            more = f" and at {len(dropped) - 1} tokens after it" if len(dropped) > 1 else ""
            then = "makes them again" if made_again else "sees only the new token"
            notes.append(
                f"at token {dropped[0]}{more} the model's own generation drops its keys and {then}: rows of earlier "
                "tokens are from the old keys"
            )
        return notes

    def _turned(self, n_fed: int) -> list[str]:
        """What there is to say of a text that was generated past the point where frequencies change."""
        if self.turn is None or self.given is not None or not self.n_prompt <= self.turn < n_fed:
            return []
        note = (
            f"the rope's frequencies change at token {self.turn} of a text that is generated; given as a whole, the "
            "same text has the later ones at all tokens, and other rows"
        )
        return [note]


def read_prompt(tokenizer: Any, prompt: Text, options: PromptOptions) -> Prompt:
    """The prompt as ids, whatever it was given as.

    Raises:
        InputError: it is empty, mixed, or not what the tokenizer's chat template takes.
    """
    check_tokenizer_kind(tokenizer)
    given: Any = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # an array or a tensor of ids
    if isinstance(given, bytes | bytearray) or not isinstance(given, Sequence):
        kind = type(given).__name__
        raise InputError(f"the prompt is of class {kind}, expected text, a list of messages, or a list of token ids")
    prompt = given
    if not isinstance(prompt, str) and prompt and all(isinstance(item, Number) for item in prompt):
        if options.continue_last or options.tools is not None:
            raise InputError("tools and a message to continue need the chat template, but the prompt is token ids")
        if options.system is not None:
            raise InputError("a system text needs the chat template, but the prompt is token ids")
        return fed_prompt(tokenizer, ids_of(prompt, "the prompt"))
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
    completion: Any,
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
    if completion is not None and not isinstance(completion, str):
        kind = type(completion).__name__
        raise InputError(f"the completion is of class {kind}, expected a text; give ids as ", Setting("token_ids"))
    text = prompt.text + (completion or "")
    if completion is not None:
        joined = join(tokenizer, prompt, completion, options.seam)
        prompt, given, seam = joined.prompt, joined.given, joined.seam
    elif token_ids is not None:
        given = tuple(ids_of(token_ids, "token ids"))
    config = text_config(model)
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int):
        check_ids([*prompt.ids, *(given or ())], size)
    refuse_placeholders(model, tokenizer, [*prompt.ids, *(given or ())])
    notes = prompt.notes if prompt.fed else (*prompt.notes, *losses(tokenizer, text, [*prompt.ids, *(given or ())]))
    length = len(prompt.ids) + len(given or ())
    # The last generated token is never fed, hence one more than the context has room for.
    longest = length if given is not None else length + max(0, max_new_tokens - 1)
    context = context_of(model)
    wall = context.wall(longest)
    if wall is not None and length > wall.n_token:
        raise InputError(
            f"the {'text' if given else 'prompt'} is {length} tokens long, the model's context holds {wall.n_token} "
            f"({wall.what}); shorten it"
        )
    if wall is not None and given is None:
        max_new_tokens = min(max_new_tokens, wall.n_token - len(prompt.ids) + 1)
    return Plan(
        prompt=prompt,
        given=given,
        max_new_tokens=max_new_tokens,
        seam=seam,
        wall=wall,
        stated=context.stated,
        notes=(*notes, *_beyond(context.stated, length, rope_of(config))),
        rope=rope_of(config),
        turn=turns_at(config),
    )


def _beyond(stated: tuple[str, int] | None, length: int, rope: str | None, *, may: bool = False) -> tuple[str, ...]:
    """What there is to say of a text that is longer than a configuration states."""
    if stated is None or length <= stated[1]:
        return ()
    are = "may come to be" if may else "are"
    how = rope or "its usual rule, beyond what it was made for"
    name, context = stated
    return (f"{length} tokens {are} in the text, {name} of the configuration is {context}: it goes on by {how}",)
