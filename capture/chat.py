"""One conversation, in one form, and the chat template that writes it as a text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from attnlens.capture.messages import Message
from attnlens.schemas.errors import InputError, MissingExtraError, Setting

DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class Chat:
    """Messages in one of the forms, ready for a template."""

    tokenizer: Any
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    continued: bool

    def render(self) -> str:
        """The template's text.

        Raises:
            InputError: the template refuses.
        """
        return self._rendered(self.messages, self.tools, continued=self.continued)

    def probe(self, messages: list[Message], *, tools: bool = True) -> str | None:
        """The template's text of other messages, or without tools, none of them continued; None if it refuses."""
        try:
            return self._rendered(messages, self.tools if tools else None, continued=False)
        except InputError:
            return None

    def goes_on(self) -> bool:
        """Whether the text of a continued message is how the text of the closed one begins; yes where that is refused.

        transformers cuts behind a mark of its own, and leaves another one where a template prints the message twice.
        """
        try:
            opened = self._rendered(self.messages, self.tools, continued=True)
            closed = self._rendered(self.messages, self.tools, continued=False, header=False)
        except InputError:
            return True
        # Digits apart: the time may pass between two texts that tell it.
        return DIGIT.sub("0", closed).startswith(DIGIT.sub("0", opened.rstrip()))

    def _rendered(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, *, continued: bool, header: bool = True
    ) -> str:
        try:
            import jinja2  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("chat templates need jinja2: pip install 'attnlens[capture]'") from error
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=header and not self.continued,
                    continue_final_message=continued,
                )
            )
        except Exception as error:  # a template is a program: it may divide by zero, or call itself for ever
            if continued and "final message" in str(error):
                raise InputError(
                    "the model's chat template changes the words of the message that is to be continued; write the "
                    "prompt as text and give ",
                    Setting("raw"),
                ) from error
            if continued and "continue_final_message" in str(error):  # its content is nowhere named in the template
                raise InputError(
                    "the model's chat template cannot leave a last message open; write the prompt as text and give ",
                    Setting("raw"),
                ) from error
            why = " ".join(str(error).split())[:300]
            raise InputError(f"the model's chat template refuses these messages: {why}") from error
