"""`--prompts FILE`: one prompt a line, as text or as JSON objects."""

from __future__ import annotations

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnlens.capture.batch.asked import Asked, Defaults, Unread, ask
from attnlens.capture.prompt_files import read_text
from attnlens.schemas.errors import InputError

OTHER_ENCODINGS = (BOM_UTF16_LE, BOM_UTF16_BE)  # that of UTF-32 begins like one of them, or with zeros
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


def read_prompts(path: str | Path, defaults: Defaults) -> list[Asked]:
    """The prompts of a UTF-8 file, in order; empty lines are left out.

    A file that ends in .jsonl or .ndjson, or that begins with { and has a JSON object in some line (and whose name does
    not end in .txt), holds one object a line; any other one prompt a line.

    A line that cannot be used is among them, with its problem: the others can be captured all the same.

    Raises:
        InputError: no such file, no prompts, or no line that can be used; the first few are told together.
    """
    path = Path(path)
    lines = [(number, line) for number, line in enumerate(_lines(path), 1) if _text_of(line).strip()]
    if lines and path.suffix.lower() == ".json" and _text_of(lines[0][1]).lstrip().startswith("["):
        raise InputError(f"{path} holds a JSON list, expected one JSON object a line (JSONL)")
    as_json = path.suffix.lower() in JSON_ENDINGS or (path.suffix.lower() != ".txt" and _begins_with_objects(lines))
    return ask(_records(lines, as_json), defaults, str(path))


def _lines(path: Path) -> list[str | Unread]:
    """The lines of a file, each decoded by itself if some are not UTF-8.

    Raises:
        InputError: no such file, or one in another encoding as a whole.
    """
    try:
        # Not splitlines: JSON and prompts may hold U+2028 and its like.
        return [line.rstrip("\r") for line in read_text(path).split("\n")]
    except InputError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError) or path.read_bytes().startswith(OTHER_ENCODINGS):
            raise
    return [_decoded(line.rstrip(b"\r")) for line in path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")]


def _decoded(line: bytes) -> str | Unread:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte {error.start} is 0x{line[error.start]:02x}"
        return Unread(text=line.decode("utf-8", "replace"), problem=problem)


def _text_of(line: str | Unread) -> str:
    return line if isinstance(line, str) else line.text


def _records(lines: list[tuple[int, str | Unread]], as_json: bool) -> Iterator[tuple[str, object]]:
    for number, line in lines:
        yield f"line {number}", _parsed(line) if as_json and isinstance(line, str) else line


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


def _begins_with_objects(lines: list[tuple[int, str | Unread]]) -> bool:
    texts = [_text_of(line).lstrip() for _, line in lines]
    return bool(texts) and texts[0].startswith("{") and any(_is_object(text) for text in texts)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
