"""What validators return: every problem at once, each as (where, what)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["format", "metadata", "array", "chunk", "value", "manifest"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a store.

    `where` is a path inside the store (`0000/attention_weight/c/0/0/3/0`), empty for the store itself.
    """

    where: str
    message: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.where or 'store'}: {self.message}"


def summary(problems: Iterable[Problem], limit: int = 3) -> str:
    """The first `limit` problems in one line, and how many more there are."""
    found = list(problems)
    text = "; ".join(str(problem) for problem in found[:limit])
    return text if len(found) <= limit else f"{text}; and {len(found) - limit} more"
