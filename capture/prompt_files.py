"""The files that prompts, messages, tools and token ids are read from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.capture.messages import check_messages, check_tools
from attnlens.schemas.errors import InputError


@dataclass(frozen=True)
class TokenIds:
    """Ids to be fed as they are. `prompt` None: the prompt is given elsewhere."""

    completion: list[int]
    prompt: list[int] | None = None


@dataclass(frozen=True)
class Conversation:
    """What a file of messages holds. `tools` None: the file names none."""

    messages: list[dict[str, Any]]
    tools: tuple[dict[str, Any], ...] | None = None


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


def read_conversation(path: str | Path) -> Conversation:
    """Messages from a JSON file: a list of {"role": …, "content": …}, or an object {"messages": […], "tools": […]}.

    Raises:
        InputError: no such file, no JSON (says where), or not of this form (says which message).
    """
    found, tools = _read_json(Path(path), read_text(Path(path))), None
    if isinstance(found, dict):
        if "messages" not in found:
            raise InputError(f'{path} holds an object without "messages": expected a list of messages')
        if found.get("tools") is not None:
            tools = check_tools(found["tools"], f"{path}: tools")
        found = found["messages"]
    return Conversation(check_messages(found, str(path)), tools)


def read_tools(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Descriptions of tools from a JSON file: a list of objects.

    Raises:
        InputError: no such file, no JSON (says where), or no list of objects.
    """
    return check_tools(_read_json(Path(path), read_text(Path(path))), str(path))


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
