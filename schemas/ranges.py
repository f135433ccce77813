"""The one syntax for lists of numbers: `3`, `-1`, `5-7`, `10:20:2`, `-5:`, or several of these with commas.

Every option that picks layers, heads, tokens or queries is read here, and so is a list that is given as text in Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attnlens.schemas.errors import InputError, Setting

EXPECTED = (
    "expected numbers (3, -1 is the last), ranges (5-7, 7 included) or Python's slices (10:20:2, 5:, :5), with commas "
    "between them"
)

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_SLICE = re.compile(r"(-?[0-9]{1,18})?:(-?[0-9]{1,18})?(?::(-?[0-9]{1,18})?)?")
_PAIR = re.compile(r"(-?[0-9]{1,18})[.:](-?[0-9]{1,18})")


def parse_ranges(text: str, size: int, *, option: str, thing: str) -> tuple[int, ...]:
    """The numbers of 0 … size - 1 that `text` lists, each once, upwards.

    `5-7` is 5, 6, 7. Negative numbers count from the end. Slices are Python's: the end is left out, and what lies
    beyond 0 … size - 1 is cut off. A number or the end of a range that does not exist is an error.

    Args:
        text: The list.
        size: How many things there are.
        option: What the text was given to, for the message (`--heads`).
        thing: What is numbered, in the singular, for the message (`head`).

    Raises:
        InputError: `text` is no such list, names a number that does not exist, or selects nothing.
    """
    if not isinstance(text, str):
        raise InputError(f"{option} {text!r} is no text: {EXPECTED}")
    chosen: set[int] = set()
    for item in text.split(","):
        chosen.update(_item(item.strip(), size, option, thing))
    if not chosen:
        raise InputError(f"{option} {text!r} selects no {thing}: {available(size, thing)}")
    return tuple(sorted(chosen))


def is_list(text: str) -> bool:
    """Whether `text` reads as a list of numbers, whatever they are of."""
    forms = (_NUMBER, _RANGE, _SLICE)
    return all(any(form.fullmatch(item.strip()) for form in forms) for item in text.split(","))


def parse_ids(text: str, *, option: str | Setting, most: int) -> tuple[int, ...]:
    """Numbers and ranges of ids, in the order given: `17,40-42`. There is no end to count from, so nothing else.

    Raises:
        InputError: it is no such list, or has more than `most` numbers.
    """
    found: list[int] = []
    for item in map(str.strip, text.split(",")):
        match = _RANGE.fullmatch(item)
        if match is None and not (_NUMBER.fullmatch(item) and not item.startswith("-")):
            raise InputError(option, f" {item!r} is not understood: expected ids (3) or ranges (5-7, 7 included)")
        first, last = (int(match[1]), int(match[2])) if match else (int(item), int(item))
        if last < first:
            raise InputError(option, f" {item}: a range goes upwards, as in {last}-{first}")
        if len(found) + last - first >= most:
            raise InputError(option, f" {text!r} lists more than {most} ids")
        found.extend(range(first, last + 1))
    return tuple(found)


def split_pair(text: str, *, option: str) -> tuple[str, str]:
    """A layer, and its head or what `--heads` would say, or "": `17.4`, `17:4` as was written before, `17:mean`, `17`.

    Raises:
        InputError: it is none of these.
    """
    if match := _PAIR.fullmatch(text.strip()):
        return match[1], match[2]
    layer, mark, heads = text.strip().partition(":")
    if not _NUMBER.fullmatch(layer) or (mark and not heads):
        raise InputError(f"{option} {text!r} is not understood: expected one layer (17), or a layer and a head (17.4)")
    return layer, heads


def available(size: int, thing: str) -> str:
    """How many things there are, for a message."""
    plural = "queries" if thing == "query" else f"{thing}s"
    if size < 2:
        return f"there is 1 {thing} (0)" if size else f"there is no {thing}"
    return f"there are {size} {plural} (0 … {size - 1})"


def runs_of(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers, upwards, as runs [start, stop)."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return runs


def both(a: list[list[int]] | None, b: list[list[int]] | None) -> list[list[int]] | None:
    """The runs that two lists of runs have in common; None stands for everything."""
    if a is None or b is None:
        return a if b is None else b
    numbers = {n for start, stop in a for n in range(start, stop)} & {
        n for start, stop in b for n in range(start, stop)
    }
    return runs_of(sorted(numbers))


def _item(item: str, size: int, option: str, thing: str) -> range:
    """What one part between commas selects."""
    if _NUMBER.fullmatch(item):
        number = int(item)
        position = number + size if number < 0 else number
        _check(position, item, size, option, thing)
        return range(position, position + 1)
    if found := _RANGE.fullmatch(item):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise InputError(f"{option} {item}: a range goes upwards, as in {last}-{first}")
        _check(last, item, size, option, thing)
        return range(first, last + 1)
    if found := _SLICE.fullmatch(item):
        start, stop, step = (None if part is None else int(part) for part in found.groups())
        if step == 0:
            raise InputError(f"{option} {item}: the step of a slice cannot be 0")
        return range(*slice(start, stop, step).indices(size))
    raise InputError(f"{option} {item!r} is not understood: {EXPECTED}")


def _check(position: int, item: str, size: int, option: str, thing: str) -> None:
    if not 0 <= position < size:
        raise InputError(f"{option} {item} is out of range: {available(size, thing)}")
