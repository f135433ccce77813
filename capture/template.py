"""Messages through the model's chat template, and whether their words are still in what comes out.

Templates are programs. Some want the content of a message as a text, some as a list of parts, and print nothing for the
other; some have no place for a system message, for tools or for what a tool said. So the words are looked for.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlens.capture.messages import Message, functions_of, strings_of, texts_of
from attnlens.schemas.errors import InputError, MissingExtraError

MARK = "zqx{}x{}xqz"
"""Appended to the texts of messages, to see where they come out."""
PRINTED = ("'type':'text'", '"type":"text"')
"""What a template writes that prints parts instead of their texts; without white space."""
LEADING = ("system", "developer")
FORMS = (("given", "given"), ("parts", "parts"), ("text", "text"), ("text", "parts"), ("parts", "text"))
"""Forms of content that are tried: of system messages, and of the others."""


@dataclass(frozen=True)
class Filled:
    """What a template made of messages. `notes`: what it left out by its own design."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Chat:
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
        """The template's text of other messages, None if it refuses them."""
        try:
            return self._rendered(messages, self.tools if tools else None, continued=False)
        except InputError:
            return None

    def _rendered(self, messages: list[Message], tools: list[dict[str, Any]] | None, *, continued: bool) -> str:
        try:
            from jinja2 import TemplateError
        except ImportError as error:
            raise MissingExtraError("chat templates need jinja2: pip install 'attnlens[capture]'") from error
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=not self.continued,
                    continue_final_message=continued,
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            if continued and "final message" in str(error):
                raise InputError("the model's chat template changes the words of the message that is to be continued; "
                                 "write the prompt as text and give --raw") from error  # fmt: skip
            why = " ".join(str(error).split())[:300]
            raise InputError(f"the model's chat template refuses these messages: {why}") from error


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
    lost: str | None = None
    second: Filled | None = None
    for form in _forms(messages):
        chat = _Chat(tokenizer, form, described, continue_last)
        try:
            text = chat.render()
        except InputError as error:
            refusal = refusal or error
            continue
        missing = _missing(chat, text)
        if missing is not None:
            lost = lost or missing
            continue
        notes = _cut(chat, text)
        if not notes:
            return Filled(text)
        second = second or Filled(text, notes)
    if second is not None:
        return second
    if lost is not None:
        raise InputError(
            f"the model's chat template leaves out {lost}, with contents as text and as parts; leave it out yourself, "
            "or write the prompt as text and give --raw"
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


def _missing(chat: _Chat, text: str) -> str | None:
    """What of the messages is not in the template's text; None if all is there that must be.

    What an assistant said earlier may be cut: templates take away its reasoning.
    """
    squeezed, marks = _squeezed(text), _marks(chat)
    own = _squeezed("".join(strings_of(chat.messages)))
    if any(squeezed.count(printed) > own.count(printed) for printed in PRINTED) and _has_parts(chat.messages):
        return "the form of a content, and prints the list of its parts"
    for number, message in enumerate(chat.messages):
        what = f"words of message {number} ({message['role']})"
        if message["role"] != "assistant" and any(
            not _is_in(part, squeezed) or not marked
            for part, marked in zip(texts_of(message), marks[number], strict=True)
        ):
            return what
        for function in functions_of(message):
            if not _is_in(function["name"], squeezed):
                return f"the call of {function['name']!r} in message {number} ({message['role']})"
            if not all(_is_in(value, squeezed) for value in _leaves(function.get("arguments"))):
                return f"arguments of {function['name']!r} in message {number} ({message['role']})"
    if chat.tools is not None:
        named = [_tool_name(tool) for tool in chat.tools]
        unnamed = next((name for name in named if not _is_in(name, squeezed)), None)
        if unnamed is not None or chat.probe(chat.messages, tools=False) == chat.probe(chat.messages):
            return f"the tool {unnamed or named[0]!r}"
    last = "".join(texts_of(chat.messages[-1])[-1:])
    if chat.continued and not text.rstrip().endswith(last.strip()):
        return f"words of message {len(chat.messages) - 1}, which is to be continued"
    return None


def _cut(chat: _Chat, text: str) -> tuple[str, ...]:
    """Remarks on words that the template left out by its own design."""
    squeezed, marks, notes = _squeezed(text), _marks(chat), []
    for number, message in enumerate(chat.messages):
        parts = zip(texts_of(message), marks[number], strict=True)
        if message["role"] == "assistant" and any(not _is_in(part, squeezed) or not marked for part, marked in parts):
            notes.append(f"the chat template leaves out words of message {number} (assistant)")
    last = "".join(texts_of(chat.messages[-1])[-1:])
    if chat.continued and not text.endswith(last.lstrip()):
        notes.append("the chat template takes away the white space at the end of the message that is continued")
    return tuple(notes)


def _marks(chat: _Chat) -> list[list[bool]]:
    """For each text of each message, whether a mark at its end comes out of the template: a short text may stand in its
    text by chance. A template that refuses marks is not asked.
    """
    marked = []
    for number, message in enumerate(chat.messages):
        content = message.get("content")
        if isinstance(content, str):
            content = _with_mark(content, number, 0)
        elif content is not None:
            content = [{**part, "text": _with_mark(part["text"], number, k)} for k, part in enumerate(content)]
        marked.append(message if content is None else {**message, "content": content})
    text = chat.probe(marked)
    return [
        [text is None or not part.strip() or MARK.format(number, k) in text for k, part in enumerate(texts_of(message))]
        for number, message in enumerate(chat.messages)
    ]


def _with_mark(text: str, number: int, part: int) -> str:
    return text + MARK.format(number, part) if text.strip() else text


def _has_parts(messages: Sequence[Message]) -> bool:
    return any(isinstance(message.get("content"), list) for message in messages)


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _leaves(value: Any) -> Iterator[str]:
    """Texts in the arguments of a call."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _squeezed(text: str) -> str:
    """Without white space, which templates trim."""
    return "".join(text.split())


def _is_in(text: str, squeezed: str) -> bool:
    """Whether the words of a text are there: as they are, or as JSON or HTML writes them."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    forms = (text, plain, json.dumps(text)[1:-1], html.escape(text))
    return any(_squeezed(form) in squeezed for form in forms)
