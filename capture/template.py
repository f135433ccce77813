"""Messages through the model's chat template, in the form that it wants them.

Templates are programs. Some want the content of a message as a text, some as a list of parts, and print nothing for the
other; some have no place for a system message, for tools or for what a tool said. So the words are looked for in what
comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlens.capture.chat import Chat
from attnlens.capture.messages import Message, texts_of
from attnlens.capture.words import Words
from attnlens.schemas.errors import InputError, Setting

LEADING = ("system", "developer")
FORMS = (("given", "given"), ("parts", "parts"), ("text", "text"), ("text", "parts"), ("parts", "text"))
"""Forms of content that are tried: of system messages, and of the others."""


@dataclass(frozen=True)
class Filled:
    """What a template made of messages. `notes`: what it left out by its own design."""

    text: str
    notes: tuple[str, ...] = ()


def fill_template(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    continue_last: bool = False,
) -> Filled:
    """The template's text of messages that were checked.

    They are given to the template as they are; if it refuses them or their words are not in what it made of them, with
    their contents as parts, or as texts.

    Args:
        tokenizer: with a chat template.
        messages: at least one.
        tools: for the template.
        continue_last: leave the last message open, instead of adding the header of an answer.

    Raises:
        InputError: the template refuses the messages, or leaves out words, tools or calls of tools.
    """
    described = [dict(tool) for tool in tools] if tools is not None else None
    refusal: InputError | None = None
    lost: tuple[int, str] | None = None
    second: Filled | None = None
    for form in _forms(messages):
        chat = Chat(tokenizer, form, described, continue_last)
        try:
            text = chat.render()
        except InputError as error:
            refusal = refusal or error
            continue
        words = Words(chat, text)
        missing = words.missing()
        if missing is not None:
            # The form in which most was right tells best what is wrong.
            lost = missing if lost is None or missing[0] > lost[0] else lost
            continue
        notes = words.cut()
        if not notes:
            return Filled(text)
        second = second or Filled(text, notes)
    if second is not None:
        return second
    if lost is not None:
        raise InputError(
            f"the model's chat template {lost[1]}, with contents as text and as parts; leave out what it "
            "has no place for, or write the prompt as text and give ",
            Setting("raw"),
        )
    assert refusal is not None
    raise refusal


def _forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages as templates may want them: contents as text or parts, none or an empty one beside calls of tools,
    arguments of calls as objects or as texts.
    """
    seen: list[list[Message]] = []
    for arguments in (_as_object, _as_text):
        for empty in (False, True):
            for leading, rest in FORMS:
                form = [
                    _formed(message, leading if message["role"] in LEADING else rest, arguments, empty=empty)
                    for message in messages
                ]
                if form not in seen:
                    seen.append(form)
                    yield form


def _formed(message: Message, content: str, arguments: Callable[[Any], Any], *, empty: bool) -> Message:
    # A key that is null is left out: templates print None, or ask whether the key is there.
    formed = {key: value for key, value in message.items() if value is not None}
    if "content" not in formed:
        if empty:
            formed["content"] = ""
    elif content == "parts" and isinstance(formed["content"], str):
        formed["content"] = [{"type": "text", "text": formed["content"]}]
    elif content == "text" and not isinstance(formed["content"], str):
        formed["content"] = "".join(texts_of(message))
    if "tool_calls" in formed:
        formed["tool_calls"] = [_called(call, arguments) for call in formed["tool_calls"]]
    return formed


def _called(call: Mapping[str, Any], arguments: Callable[[Any], Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _called(call["function"], arguments)}
    return {**call, "arguments": arguments(call["arguments"])} if "arguments" in call else dict(call)


def _as_object(arguments: Any) -> Any:
    """Arguments of a call as templates expect them, where they came as a text of JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments


def _as_text(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
