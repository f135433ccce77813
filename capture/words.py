"""Whether the words of messages are still in what a chat template made of them."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnlens.capture.chat import Chat
from attnlens.capture.messages import Message, functions_of, strings_of, texts_of

MARK = "zqx{}x{}xqz"
"""Appended to the texts of messages, to see whether they come out: a short text may stand in a template by chance."""
PRINTED = ("'type':'text'", '"type":"text"')
"""What comes out, white space apart, where a template prints parts instead of their texts."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message, beside its content, that hold words of an assistant."""


class Words:
    """A text that a template made of a conversation, held against the conversation."""

    def __init__(self, chat: Chat, text: str) -> None:
        self._chat, self._text = chat, text
        self._squeezed = _squeezed(text)
        self._marked = self._come_out()

    def missing(self) -> tuple[int, str] | None:
        """What the template does to the conversation that it must not, and how much was right before that was found;
        None if all is there that must be.

        What an assistant said may be cut: templates take away its reasoning. The rest they must not.
        """
        finders = (self._printed, self._text_missing, self._call_missing, self._tool_missing, self._end_missing)
        for number, find in enumerate(finders):
            found = find()
            if found is not None:
                return number, found
        return None

    def cut(self) -> tuple[str, ...]:
        """Remarks on words that the template left out by its own design."""
        notes = [
            f"the chat template leaves out words of message {number} (assistant)"
            for number, message in enumerate(self._chat.messages)
            if message["role"] == "assistant" and not self._has_texts(number)
        ]
        notes += [
            f"the chat template leaves out {key} of message {number} ({message['role']})"
            for number, message in enumerate(self._chat.messages)
            for key in REASONING
            if isinstance(words := message.get(key), str) and not self._has(words)
        ]
        if self._chat.continued and not any(self._text.endswith(form.lstrip()) for form in _written(self._last())):
            notes.append("the chat template takes away the white space at the end of the message that is continued")
        return tuple(notes)

    def _printed(self) -> str | None:
        own = html.unescape(_squeezed("".join(strings_of(self._chat.messages))))
        text = html.unescape(self._squeezed)
        printed = any(text.count(part) > own.count(part) for part in PRINTED)
        return "prints the parts of a content, and not their words" if printed and self._has_parts() else None

    def _text_missing(self) -> str | None:
        for number, message in enumerate(self._chat.messages):
            if message["role"] != "assistant" and not self._has_texts(number):
                # Each mark at an end came out, if perhaps in capitals: the text before it is another.
                came = all(mark in self._came.lower() for mark in _marks_of(message, number))
                return f"leaves out {'or changes ' if came else ''}words of message {number} ({message['role']})"
        return None

    def _call_missing(self) -> str | None:
        marked = self._chat.probe([_with_marked_calls(one, number) for number, one in enumerate(self._chat.messages)])
        for number, message in enumerate(self._chat.messages):
            for k, function in enumerate(functions_of(message)):
                where = f"{function['name']!r} in message {number} ({message['role']})"
                # The name alone stands among the tools, too.
                if not self._has(function["name"]) or (marked is not None and MARK.format(number, k) not in marked):
                    return f"leaves out the call of {where}"
                if not all(self._has(value) for value in _leaves(function.get("arguments"))):
                    return f"leaves out arguments of {where}"
        return None

    def _tool_missing(self) -> str | None:
        tools = [_name(tool) for tool in self._chat.tools or ()]
        for number, name in enumerate(tools):
            if not name:
                return f"cannot be seen to name tool {number}, which has no name"
            if not self._has(name):
                return f"leaves out the tool {name!r}"
        same = tools and self._chat.probe(self._chat.messages, tools=False) == self._chat.probe(self._chat.messages)
        return f"leaves out the tool {tools[0]!r}" if same else None

    def _end_missing(self) -> str | None:
        if not self._chat.continued:
            return None
        where = f"message {len(self._chat.messages) - 1}, which is to be continued"
        if not any(self._text.rstrip().endswith(form.strip()) for form in _written(self._last())):
            return f"leaves out words of {where}"
        return None if self._chat.goes_on() else f"prints the words of {where}, more than once"

    def _last(self) -> str:
        """The text that is continued."""
        return "".join(texts_of(self._chat.messages[-1])[-1:])

    def _has_parts(self) -> bool:
        return any(isinstance(message.get("content"), list) for message in self._chat.messages)

    def _has_texts(self, number: int) -> bool:
        texts = texts_of(self._chat.messages[number])
        return all(self._has(text) and came for text, came in zip(texts, self._marked[number], strict=True))

    def _has(self, text: str) -> bool:
        """Whether the words of `text` are there: as they are, or as JSON or HTML writes them."""
        return any(_squeezed(form) in self._squeezed for form in _written(text))

    def _come_out(self) -> list[list[bool]]:
        """For each text of each message, whether a mark at its end comes out; yes where marks are refused."""
        text = self._chat.probe([_with_marks(message, number) for number, message in enumerate(self._chat.messages)])
        self._came = text or ""
        return [
            [text is None or not part.strip() or MARK.format(number, k) in text for k, part in enumerate(texts_of(one))]
            for number, one in enumerate(self._chat.messages)
        ]


def _with_marks(message: Message, number: int) -> Message:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _with_mark(content, number, 0)}
    if content is None:
        return message
    return {**message, "content": [{**part, "text": _with_mark(part["text"], number, k)}
                                   for k, part in enumerate(content)]}  # fmt: skip


def _with_marked_calls(message: Message, number: int) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "name": call["function"]["name"] + MARK.format(number, k)}}
        if isinstance(call.get("function"), Mapping)
        else {**call, "name": call["name"] + MARK.format(number, k)}
        for k, call in enumerate(message["tool_calls"])
    ]
    return {**message, "tool_calls": calls}


def _marks_of(message: Message, number: int) -> list[str]:
    """The marks of the texts of a message."""
    return [MARK.format(number, k) for k, part in enumerate(texts_of(message)) if part.strip()]


def _with_mark(text: str, number: int, part: int) -> str:
    return text + MARK.format(number, part) if text.strip() else text


def _name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _leaves(value: Any) -> Iterator[str]:
    """Texts in the arguments of a call, without the names of the arguments."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(item)


def _written(text: str) -> tuple[str, ...]:
    """A text as it is, as JSON writes it, and as HTML does: Python's, and that of Jinja."""
    quoted = json.dumps(text, ensure_ascii=False)[1:-1]
    escaped = html.escape(text)
    return text, quoted, json.dumps(text)[1:-1], escaped, escaped.replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _squeezed(text: str) -> str:
    """Without white space, which templates trim."""
    return "".join(text.split())
