"""Numbers as a person lists them: `3`, `-1`, `5-7`, `8:16`, `::2`, `0:4,9`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attnlens.schemas.errors import InputError

_NUMBER = re.compile(r"-?[0-9]{1,12}")
_RANGE = re.compile(r"([0-9]{1,12})-([0-9]{1,12})")
_SLICE = re.compile(r"(-?[0-9]{1,12})?:(-?[0-9]{1,12})?(?::(-?[0-9]{1,12})?)?")


def parse_ranges(text: str, size: int, option: str) -> list[int]:
    """The numbers that `text` lists, each once, upwards; of 0 … size - 1, negative ones from the end.

    As for pictures: `5-7` is 5, 6, 7; slices are Python's, their end is left out.

    Raises:
        InputError: it lists none, or one outside.
    """
    found: set[int] = set()
    for part in map(str.strip, text.split(",")):
        if match := _SLICE.fullmatch(part):
            first, last, step = (None if value is None else int(value) for value in match.groups())
            if step == 0:
                raise InputError(f"{option} {text!r}: the step of a slice cannot be 0")
            found.update(range(size)[first:last:step])
            continue
        if match := _RANGE.fullmatch(part):
            numbers = range(int(match[1]), int(match[2]) + 1)
            if not numbers:
                raise InputError(f"{option} {text!r}: a range goes upwards, as in {match[2]}-{match[1]}")
        elif _NUMBER.fullmatch(part):
            number = int(part)
            numbers = range(number % size, number % size + 1) if -size <= number < 0 else range(number, number + 1)
        else:
            raise InputError(
                f"{option} {text!r} is not understood: expected numbers, ranges, slices, as 3 or 5-7 or 8:16 or 0:4,9"
            )
        if not 0 <= numbers[0] <= numbers[-1] < size:
            outside = numbers[0] if numbers[0] < 0 else max(numbers[0], size)
            raise InputError(f"{option} {text!r}: there is no {outside}, there are 0 … {size - 1}")
        found.update(numbers)
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
