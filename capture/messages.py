"""Chat messages and descriptions of tools, as they may be given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnlens.schemas.errors import InputError

Message = dict[str, Any]


def check_messages(messages: Any, where: str) -> list[Message]:
    """The messages, copied, if each has a role, and a content that can be fed.

    A content is a text, or a list of parts {"type": "text", "text": …}. It may be null or left out beside `tool_calls`.
    Other keys (`name`, `tool_call_id`, …) are the template's business.

    Raises:
        InputError: says which message and why.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"{where}: expected a list of at least one message")
    checked = []
    for number, message in enumerate(messages):
        here = f"{where}: message {number}"
        if not isinstance(message, Mapping):
            raise InputError(f"{here} is {type(message).__name__}, expected an object")
        if not isinstance(message.get("role"), str):
            raise InputError(f'{here}: expected a text as "role", found {_kind(message, "role")}')
        calls = message.get("tool_calls")
        if calls is not None:
            _check_calls(calls, here)
        if not (calls and message.get("content") is None):
            _check_content(message, here)
        checked.append(_copied(message, here))
    if not any(message.get("tool_calls") or "".join(texts_of(message)).strip() for message in checked):
        raise InputError(f"{where}: every message is empty")
    return checked


def check_tools(tools: Any, where: str) -> tuple[dict[str, Any], ...]:
    """The descriptions of tools, copied: JSON objects, as chat templates take them.

    Raises:
        InputError: no list, or one that holds something else.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not tools:
        raise InputError(f"{where}: expected a JSON list of tools, each an object")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(f"{where}: expected a JSON list of tools, each an object")
    return tuple(_copied(tool, f"{where}: tool {number}") for number, tool in enumerate(tools))


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """The texts of a message that was checked: its content, or that of each part."""
    content = message.get("content")
    if content is None:
        return []
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def functions_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The functions that a message calls, {"name": …, "arguments": …} each."""
    return [call.get("function", call) for call in message.get("tool_calls") or ()]


def require_unicode(text: str, what: str) -> None:
    """Return if `text` can be encoded.

    Raises:
        InputError: it holds half of a surrogate pair; the message says which and where.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X}"
        raise InputError(
            f"{what} is no valid Unicode: character {error.start} is {found}, half of a surrogate pair"
        ) from error


def require_unicode_messages(messages: Sequence[Message]) -> None:
    """Return if every text in the messages can be encoded.

    Raises:
        InputError: says which message.
    """
    for message in messages:
        for text in strings_of(message):
            require_unicode(text, f"the {message['role']} message")


def strings_of(value: Any) -> Iterator[str]:
    """Every text in a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (str(key), *strings_of(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_of(item)


def _check_content(message: Mapping[str, Any], here: str) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, Sequence) or not content:
        raise InputError(f'{here}: expected a text as "content", found {_kind(message, "content")}')
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise InputError(f'{here}: expected parts {{"type": "text", "text": …}}, found {_shown(part)}')
        if part["type"] != "text":
            raise InputError(f"{here} holds a part of type {part['type']!r}: only text can be captured, leave it out")
        if not isinstance(part.get("text"), str):
            raise InputError(f'{here}: expected a text as "text" of a part, found {_kind(part, "text")}')


def _check_calls(calls: Any, here: str) -> None:
    good = isinstance(calls, list) and all(
        isinstance(call, Mapping)
        and isinstance(call.get("function", call), Mapping)
        and isinstance(call.get("function", call).get("name"), str)
        for call in calls
    )
    if not good:
        raise InputError(
            f'{here}: expected "tool_calls" as a list of {{"function": {{"name": …, "arguments": …}}}}, '
            f"found {_shown(calls)}"
        )


def _copied(value: Mapping[str, Any], here: str) -> dict[str, Any]:
    """A copy that shares nothing, and that a store can record."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{here} cannot be recorded as JSON: {error}") from error
    return copy


def _kind(found: Mapping[str, Any], key: str) -> str:
    if key not in found:
        return "nothing"
    return "an empty list" if found[key] in ([], ()) else type(found[key]).__name__


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"
