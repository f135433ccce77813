"""Numbers as a person lists them: `3`, `8:16`, `0:4,9`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attnlens.schemas.errors import InputError

_PART = re.compile(r"(-?[0-9]{1,12})?(:(-?[0-9]{1,12})?)?")


def parse_ranges(text: str, size: int, option: str) -> list[int]:
    """The numbers that `text` lists, each once, upwards; of 0 … size - 1, negative ones from the end in slices.

    Raises:
        InputError: it lists none, or one outside.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None or not part.strip():
            raise InputError(f"{option} {text!r} is not understood: expected numbers and slices, as 3 or 8:16 or 0:4,9")
        if match[2] is None:
            number = int(match[1])
            if not 0 <= number < size:
                raise InputError(f"{option} {text!r}: there is no {number}, there are 0 … {size - 1}")
            found.add(number)
        else:
            first, last = (None if value is None else int(value) for value in (match[1], match[3]))
            found.update(range(size)[first:last])
    if not found:
        raise InputError(f"{option} {text!r} names nothing of 0 … {size - 1}")
    return sorted(found)


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
