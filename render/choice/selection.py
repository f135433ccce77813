"""Numbers picked out of 0 … size-1 by a text: `3`, `-1`, `5-7`, `40:60`, `::2`, or several of these with commas."""

from __future__ import annotations

import re

from attnlens.schemas.errors import InputError

_INDEX = re.compile(r"-?[0-9]{1,18}")
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_SLICE = re.compile(r"(-?[0-9]{1,18})?:(-?[0-9]{1,18})?(?::(-?[0-9]{1,18})?)?")


def select(text: str, size: int, *, option: str, thing: str) -> tuple[int, ...]:
    """The numbers that `text` names, each once, in increasing order.

    `5-7` is 5, 6, 7. Slices are Python's: the end is left out, negative numbers count from the end, what lies
    beyond the end is cut off. A number or a range beyond the end is an error.

    Args:
        text: numbers, ranges and slices with commas between them.
        size: how many there are.
        option: the option that the text was given to, for the message (`--heads`).
        thing: what is numbered, in the singular, for the message (`head`).

    Raises:
        InputError: `text` is no such list, names a number that does not exist, or names none.
    """
    chosen: set[int] = set()
    for item in text.split(","):
        chosen.update(_item(item.strip(), size, option, thing))
    if not chosen:
        raise InputError(f"{option} {text!r} selects no {thing}: {_available(size, thing)}")
    return tuple(sorted(chosen))


def _item(item: str, size: int, option: str, thing: str) -> range:
    if _INDEX.fullmatch(item):
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
    raise InputError(
        f"{option} {item!r} is not understood: expected numbers (3), ranges (5-7) or slices (40:60, -5:, ::2), "
        "with commas between them"
    )


def _check(position: int, item: str, size: int, option: str, thing: str) -> None:
    if not 0 <= position < size:
        raise InputError(f"{option} {item} is out of range: {_available(size, thing)}")


def _available(size: int, thing: str) -> str:
    plural = "queries" if thing == "query" else f"{thing}s"
    return f"there is 1 {thing} (0)" if size == 1 else f"there are {size} {plural} (0 … {size - 1})"
