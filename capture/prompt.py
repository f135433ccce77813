"""From what the user says to the ids the model is given."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.schemas.errors import InputError, MissingExtraError


@dataclass(frozen=True)
class Prompt:
    """A prompt as text with its template filled in, as ids, and as the messages it was made of (None: raw text).

    `tools` went to the template; `continued`: the last message is continued, not answered.
    """

    text: str
    ids: list[int]
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    continued: bool = False


@dataclass(frozen=True)
class TokenIds:
    """Ids to be fed as they are. `prompt` None: the prompt is given elsewhere."""

    completion: list[int]
    prompt: list[int] | None = None


def build_prompt(
    tokenizer: Any,
    *,
    text: str | None = None,
    messages: Sequence[dict[str, Any]] | None = None,
    system: str | None = None,
    raw: bool = False,
) -> Prompt:
    """The ids of `text` or `messages`, of which one is given.

    With a chat template, `text` becomes a user message after the message `system`, and the header of the answer
    follows. Without one (base models) or with `raw`, `text` is the prompt as it stands, after the tokens with which the
    tokenizer begins every text.

    Raises:
        InputError: nothing to say, both or neither given, text that is no Unicode, messages the template refuses, or
            messages and a system text where there is no template.
    """
    if (text is None) == (messages is None):
        raise InputError("give either a prompt or messages" + (", not both" if text is not None else ""))
    templated = bool(getattr(tokenizer, "chat_template", None)) and not raw
    if not templated:
        why = "raw text" if raw else "a model without a chat template"
        if messages is not None:
            raise InputError(f"messages cannot be given with {why}: give the prompt as text")
        if system is not None:
            raise InputError(f"a system text cannot be given with {why}: write it into the prompt")
        return _raw(tokenizer, text or "")
    chat: list[dict[str, Any]]
    if messages is None:
        if not (text or "").strip():
            raise InputError("the prompt is empty")
        chat = [{"role": "user", "content": text}]
        if system is not None:
            chat.insert(0, {"role": "system", "content": system})
    else:
        if system is not None:
            raise InputError("a system text cannot be given with messages: make it their first message")
        chat = check_messages(messages, "messages")
    for message in chat:
        require_unicode(message["content"], f"the {message['role']} message")
    rendered = _fill_template(tokenizer, chat)
    # The template wrote every special token, the first included.
    return Prompt(rendered, _require_ids(encode(tokenizer, rendered)), chat)


def _raw(tokenizer: Any, text: str) -> Prompt:
    if not text:
        raise InputError("the prompt is empty")
    require_unicode(text, "the prompt")
    plain = encode(tokenizer, text)
    begin = getattr(tokenizer, "bos_token", None)
    if begin and text.startswith(begin):
        return Prompt(text, _require_ids(plain))
    full = list(tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"])
    # What a tokenizer puts before a text belongs to it; what it puts behind (end of sequence) would end the prompt.
    starts = [n for n in range(len(full) - len(plain) + 1) if full[n : n + len(plain)] == plain]
    return Prompt(text, _require_ids(full[: starts[0] + len(plain)] if starts else full))


def _require_ids(ids: list[int]) -> list[int]:
    if not ids:
        raise InputError("the prompt has no tokens: the tokenizer drops all of its characters")
    return ids


def _fill_template(tokenizer: Any, chat: list[dict[str, Any]]) -> str:
    try:
        from jinja2 import TemplateError
    except ImportError as error:
        raise MissingExtraError("chat templates need jinja2: pip install 'attnlens[capture]'") from error
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"the model's chat template refuses these messages: {' '.join(str(error).split())}") from error


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of the text alone, without tokens the tokenizer would add around it."""
    return list(tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Ids of a given continuation. Special tokens written out in it (an end of turn, say) count as such; none is added.

    Raises:
        InputError: empty, or text that is no Unicode.
    """
    if not text:
        raise InputError("the completion is empty")
    require_unicode(text, "the completion")
    ids = encode(tokenizer, text)
    if not ids:
        raise InputError("the completion has no tokens: the tokenizer drops all of its characters")
    return ids


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


def read_prompt_file(path: str | Path) -> str:
    """A prompt from a UTF-8 text file, less the line break at its end that editors add.

    Raises:
        InputError: no such file, not UTF-8, or empty.
    """
    text = read_text(Path(path))
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise InputError(f"{path} is empty: expected a prompt")
    return text


def read_messages(path: str | Path) -> list[dict[str, Any]]:
    """Messages from a JSON file: a list of {"role": …, "content": …}, or an object that holds it as "messages".

    Raises:
        InputError: no such file, no JSON (says where), or not of this form (says which message).
    """
    found = _read_json(Path(path), read_text(Path(path)))
    if isinstance(found, dict):
        if "messages" not in found:
            raise InputError(f'{path} holds an object without "messages": expected a list of messages')
        found = found["messages"]
    return check_messages(found, str(path))


def read_tools(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Descriptions of tools from a JSON file: a list of objects.

    Raises:
        InputError: no such file, no JSON (says where), or no list of objects.
    """
    found = _read_json(Path(path), read_text(Path(path)))
    if not isinstance(found, list) or not found or not all(isinstance(tool, dict) for tool in found):
        raise InputError(f"{path}: expected a JSON list of tools, each an object")
    return tuple(found)


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """The messages, copied, if each has a role and a text.

    Raises:
        InputError: says which message and why.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"{where}: expected a list of at least one message")
    checked = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InputError(f"{where}: message {number} is {type(message).__name__}, expected an object")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = type(message[key]).__name__ if key in message else "nothing"
                raise InputError(f'{where}: message {number}: expected a text as "{key}", found {found}')
        checked.append(dict(message))
    if not any(message["content"].strip() for message in checked):
        raise InputError(f"{where}: every message is empty")
    return checked


def read_token_ids(path: str | Path) -> TokenIds:
    """Ids from a file: a JSON list or numbers between spaces and commas (the completion), or a JSON object
    {"prompt": […], "completion": […]}, of which either may be left out.

    Raises:
        InputError: no such file, or something that is no id (says what and where).
    """
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path} is empty: expected token ids")
    if text.lstrip()[0] not in "[{":
        return TokenIds(_parse_plain(path, text))
    found = _read_json(path, text)
    if isinstance(found, list):
        return TokenIds(_check_list(found, f"{path}", required=True))
    unknown = sorted(set(found) - {"prompt", "completion"})
    if unknown or not found:
        what = f"unknown key {unknown[0]!r}" if unknown else "nothing"
        raise InputError(f'{path}: found {what}, expected "prompt" and "completion"')
    prompt = _check_list(found["prompt"], f"{path}: prompt", required=True) if "prompt" in found else None
    completion = _check_list(found.get("completion", []), f"{path}: completion", required=prompt is None)
    return TokenIds(completion, prompt)


def check_ids(ids: Sequence[int], size: int, what: str = "token ids") -> None:
    """Return if every id is one of the vocabulary's.

    Args:
        ids: one id a token.
        size: rows of the model's embedding.
        what: how the message calls them.

    Raises:
        InputError: says which, and where it stands.
    """
    for index, token in enumerate(ids):
        if not 0 <= token < size:
            raise InputError(f"{what}: id {token} at index {index} is outside the model's vocabulary, 0 … {size - 1}")


def _parse_plain(path: Path, text: str) -> list[int]:
    ids = []
    for match in re.finditer(r"[^\s,]+", text):
        if not re.fullmatch(r"[0-9]{1,9}", match[0]):
            line = text.count("\n", 0, match.start()) + 1
            column = match.start() - text.rfind("\n", 0, match.start())
            raise InputError(f"{path}, line {line}, column {column}: expected a token id, found {match[0][:40]!r}")
        ids.append(int(match[0]))
    if not ids:
        raise InputError(f"{path} holds no token ids")
    return ids


def _check_list(found: Any, where: str, *, required: bool) -> list[int]:
    if not isinstance(found, list):
        raise InputError(f"{where}: expected a list of token ids, found {type(found).__name__}")
    for index, item in enumerate(found):
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise InputError(f"{where}: index {index}: expected a token id, found {json.dumps(item)[:40]}")
    if required and not found:
        raise InputError(f"{where}: holds no token ids")
    return list(found)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, less a byte order mark.

    Raises:
        InputError: no such file, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from error
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}, column {error.colno}: no valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: no valid JSON: {error}") from error
