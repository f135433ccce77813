"""One prompt of many: what is asked, under which id, and how it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlens.capture.generation_fields import check_overrides
from attnlens.capture.messages import check_messages, check_tools, require_unicode, require_unicode_messages
from attnlens.capture.plan import Text
from attnlens.capture.prompt import ids_of
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.settings import Generation
from attnlens.schemas.errors import InputError

TEXT_KEYS = ("prompt", "messages", "token_ids")
NUMBERS = ("max_new_tokens", "temperature", "top_p", "seed")
GENERATION_KEYS = (*NUMBERS, "generation")
WORDING_KEYS = ("system", "raw", "tools", "continue", "seam")
KEYS = ("id", *TEXT_KEYS, "completion", *WORDING_KEYS, *GENERATION_KEYS)
LONGEST_ID = 200
TOLD = 4
"""So many problems are told in one message."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One prompt. `where` says where it stands ("line 7"), `problem` why it cannot be used but fails."""

    id: str
    where: str
    prompt: Text
    wording: PromptOptions
    completion: str | None
    token_ids: tuple[int, ...] | None
    generation: Generation
    problem: str | None = None

    @property
    def sha256(self) -> str:
        """Hash over everything that is asked; where it stands and what is wrong with it are not."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("where", "problem")}
        return hashlib.sha256(_canonical(values).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds for every prompt that does not say otherwise. A system text goes before text prompts only."""

    generation: Generation = dataclasses.field(default_factory=Generation)
    wording: PromptOptions = dataclasses.field(default_factory=PromptOptions)


def seed_of(seed: int, prompt_id: str) -> int:
    """Seed of one prompt: the first 6 bytes, big-endian, of the sha256 of "SEED:ID" in UTF-8.

    It depends on nothing else, so a prompt's text comes out the same whatever it is captured with. 48 bits, so that
    every program can read the number.
    """
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


@dataclass(frozen=True, kw_only=True)
class Unread:
    """What the reader of a file could make nothing of: the text, and why."""

    text: str
    problem: str


def ask(found: Iterable[tuple[str, object]], defaults: Defaults, source: str) -> list[Asked]:
    """Prompts out of texts, lists of messages, lists of token ids, or mappings with `KEYS`, each with where it stands.

    One that cannot be used is among them, with its problem; so is the second of two with the same id.

    Args:
        found: pairs of where, and what was found there.
        defaults: what holds where a prompt does not say otherwise.
        source: names the whole, for the message.

    Raises:
        InputError: no prompt, or none that can be used; the first few problems are told together.
    """
    asked: list[Asked] = []
    bad: list[int] = []
    places: dict[str, str] = {}
    copies: dict[str, int] = {}
    for where, value in found:
        name = None
        try:
            if isinstance(value, Unread):
                raise InputError(value.problem)
            name = _name(value) if isinstance(value, Mapping) else None
            one = _ask(where, value, defaults, copies)
            if one.id in places:
                raise InputError(f"the id {one.id!r} was given before ({places[one.id]})")
        except InputError as error:
            bad.append(len(asked))
            one = _failed(where, value, "" if name in places else name or "", defaults, str(error))
        if one.id:
            places[one.id] = where
        asked.append(one)
    if not asked:
        raise InputError(f"{source} holds no prompts")
    if len(bad) == len(asked):
        more = f"; and {len(bad) - TOLD} more" if len(bad) > TOLD else ""
        raise InputError(f"{source}: {'; '.join(f'{one.where}: {one.problem}' for one in asked[:TOLD])}{more}")
    for number in bad:
        if not asked[number].id:
            asked[number] = dataclasses.replace(asked[number], id=_free_id(asked[number].where, places))
            places[asked[number].id] = asked[number].where
    return asked


def _failed(where: str, value: object, name: str, defaults: Defaults, problem: str) -> Asked:
    """A prompt that cannot be used, its words as they stand there. `name` is empty where it has no id of its own."""
    text = value.text if isinstance(value, Unread) else value
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False, default=str)
    return Asked(
        id=name,
        where=where,
        prompt=text.encode("utf-8", "replace").decode("utf-8"),
        wording=defaults.wording,
        completion=None,
        token_ids=None,
        generation=defaults.generation,
        problem=problem,
    )


def _free_id(where: str, taken: Mapping[str, str]) -> str:
    """An id from the place, "line-7", that no prompt has."""
    name = where.replace(" ", "-")
    numbers = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbers if other not in taken)


def _ask(where: str, value: object, defaults: Defaults, copies: dict[str, int]) -> Asked:
    value = _listed(value)
    record = value if isinstance(value, Mapping) else {_kind(value): value}
    unknown = sorted(str(key) for key in record if key not in KEYS)
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}, known are {', '.join(KEYS)}")
    record = {key: _listed(item) for key, item in record.items() if item is not None}
    prompt, given = _text(record)
    completion = record.get("completion")
    if completion is not None and given is not None:
        raise InputError("both completion and token_ids say how it goes on, expected one of them")
    if isinstance(completion, str):
        require_unicode(_required_text(completion, "completion"), "the completion")
    elif completion is not None:
        given, completion = _ids(completion, "completion"), None
    wording = _wording(record, prompt, defaults.wording)
    name = _name(record) or _content_id(record, copies)
    return Asked(
        id=name,
        where=where,
        prompt=prompt,
        wording=wording,
        completion=completion,
        token_ids=given,
        generation=_generation(record, defaults.generation, name),
    )


def _listed(value: Any) -> Any:
    """Arrays, tensors and numbers of numpy as lists and numbers."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _wording(record: Mapping[str, Any], prompt: Text, defaults: PromptOptions) -> PromptOptions:
    """How the prompt becomes tokens. What was set for all prompts is left out where it has no meaning."""
    raw = _flag(record, "raw", defaults.raw)
    if raw and "messages" in record:
        raise InputError("messages need the model's template, but raw was asked for")
    templated = not raw and (isinstance(prompt, str) or "messages" in record)
    system: Any = record.get("system")
    if system is not None:
        require_unicode(_required_text(system, "system"), "the system text")
        if raw or not isinstance(prompt, str):
            raise InputError("a system text goes with a text prompt and the model's template only")
    elif isinstance(prompt, str) and not raw:
        system = defaults.system
    tools = check_tools(record["tools"], "tools") if "tools" in record else None
    if tools is not None and not templated:
        raise InputError("tools go with a prompt that the model's template is filled with, not with raw text or ids")
    continue_last = _flag(record, "continue", defaults.continue_last and "messages" in record)
    if continue_last and "messages" not in record:
        raise InputError("continue goes on with the last of messages, but there are none")
    wording = PromptOptions(
        system=system,
        raw=raw,
        tools=tools if tools is not None else defaults.tools if templated else None,
        continue_last=continue_last,
        seam=record.get("seam", defaults.seam),
    )
    wording.check()
    return wording


def _kind(value: object) -> str:
    """Key of a prompt that is not a mapping."""
    if isinstance(value, str):
        return "prompt"
    if isinstance(value, Sequence) and value and not isinstance(value, bytes | bytearray):
        if all(isinstance(item, Mapping) for item in value):
            return "messages"
        if all(isinstance(item, int) for item in value):
            return "prompt"
    raise InputError(f"expected a text, messages, token ids or an object with {' or '.join(TEXT_KEYS)}, "
                     f"found {_shown(value)}")  # fmt: skip


def _text(record: Mapping[str, Any]) -> tuple[Text, tuple[int, ...] | None]:
    """The prompt, and the token ids that it goes on with (None: not given as ids)."""
    if "prompt" in record and "messages" in record:
        raise InputError("both prompt and messages are given, expected one of them")
    given = _ids(record["token_ids"], "token_ids") if "token_ids" in record else None
    if "messages" in record:
        messages = check_messages(record["messages"], "messages")
        require_unicode_messages(messages)
        return messages, given
    if "prompt" in record:
        prompt = record["prompt"]
        if not isinstance(prompt, str):
            return _ids(prompt, "prompt"), given
        require_unicode(_required_text(prompt, "prompt"), "the prompt")
        return prompt, given
    if given is None:
        raise InputError(f"no {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}")
    # A list of ids alone is a whole text, as with --token-ids.
    return given[:1], given[1:] or None


def _required_text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key} is {_shown(value)}, expected a text")
    # A completion may be a blank or a line break, which are tokens.
    if not (value if key == "completion" else value.strip()) and key != "system":
        raise InputError(f"{key} is empty")
    return value


def _ids(value: object, key: str) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray) or not value:
        expected = "token ids" if key == "token_ids" else "a text or token ids"
        raise InputError(f"{key} is {_shown(value)}, expected {expected}")
    return tuple(ids_of(value, key))


def _flag(record: Mapping[str, Any], key: str, default: bool) -> bool:
    value = record.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{key} is {_shown(value)}, expected true or false")
    return value


def _generation(record: Mapping[str, Any], defaults: Generation, name: str) -> Generation:
    values: dict[str, Any] = {"seed": seed_of(defaults.seed, name)}
    for key in NUMBERS:
        if key not in record:
            continue
        value, whole = record[key], key in ("max_new_tokens", "seed")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise InputError(f"{key} is {_shown(value)}, expected a {'whole ' if whole else ''}number")
        values[key] = value
    if "generation" in record:
        fields = record["generation"]
        if not isinstance(fields, Mapping):
            raise InputError(f"generation is {_shown(fields)}, expected an object of generation settings")
        values["overrides"] = {**defaults.overrides, **check_overrides(fields)}
    generation = dataclasses.replace(defaults, **values)
    generation.check()
    return generation


def _name(record: Mapping[str, Any]) -> str | None:
    """The prompt's own id, as a text."""
    found = record.get("id")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise InputError(f"id is {_shown(found)}, expected a text or a whole number")
    name = str(found)
    if not name.strip() or len(name) > LONGEST_ID or not name.isprintable():
        raise InputError(f"id is {_shown(name)}, expected 1 to {LONGEST_ID} printable characters")
    return name


def _content_id(record: Mapping[str, Any], copies: dict[str, int]) -> str:
    """An id from what is asked, so that it does not depend on the place in the file; copies are counted."""
    asked = {key: item for key, item in record.items() if key not in ("id", *GENERATION_KEYS)}
    name = f"p{hashlib.sha256(_canonical(asked).encode()).hexdigest()[:10]}"
    copies[name] = copies.get(name, 0) + 1
    return name if copies[name] == 1 else f"{name}-{copies[name]}"


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}…"
