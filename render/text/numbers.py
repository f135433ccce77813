"""Numbers as people write them."""

from __future__ import annotations

from collections.abc import Sequence


def runs(numbers: Sequence[int], dash: str = "-", comma: str = ",") -> str:
    """`0,3,5-7` for 0, 3, 5, 6, 7: the text that `select` understands."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return comma.join(str(run[0]) if len(run) == 1 else f"{run[0]}{dash}{run[-1]}" for run in found)
