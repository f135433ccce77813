"""`--prompts FILE`: one prompt a line, as text or as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnlens.capture.batch.asked import Asked, Defaults, Unread, ask
from attnlens.capture.prompt_files import read_text
from attnlens.schemas.errors import InputError

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


def read_prompts(path: str | Path, defaults: Defaults) -> list[Asked]:
    """The prompts of a UTF-8 file, in order; empty lines are left out.

    A file that ends in .jsonl or .ndjson, or whose first line is a JSON object (and whose name does not end in .txt),
    holds one object a line; any other one prompt a line.

    A line that cannot be used is among them, with its problem: the others can be captured all the same.

    Raises:
        InputError: no such file, no prompts, or no line that can be used; the first few are told together.
    """
    path = Path(path)
    # Not splitlines: JSON and prompts may hold U+2028 and its like.
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(read_text(path).split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if lines and path.suffix.lower() == ".json" and lines[0][1].lstrip().startswith("["):
        raise InputError(f"{path} holds a JSON list, expected one JSON object a line (JSONL)")
    as_json = path.suffix.lower() in JSON_ENDINGS or (
        path.suffix.lower() != ".txt" and bool(lines) and _is_object(lines[0][1])
    )
    return ask(_records(lines, as_json), defaults, str(path))


def _records(lines: list[tuple[int, str]], as_json: bool) -> Iterator[tuple[str, object]]:
    for number, line in lines:
        yield f"line {number}", _parsed(line) if as_json else line


def _parsed(line: str) -> object:
    """The object of one line, or what is wrong with it."""
    try:
        found = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        return Unread(text=line, problem=f"no valid JSON: {error.msg} at column {error.colno}")
    except InputError as error:
        return Unread(text=line, problem=str(error))
    except (RecursionError, ValueError) as error:
        return Unread(text=line, problem=f"no valid JSON: {error}")
    if isinstance(found, dict):
        return found
    return Unread(text=line, problem=f"expected a JSON object, found {type(found).__name__}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InputError(f"the key {twice!r} is there twice")
    return dict(pairs)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
