"""Which tokens become pictures, and what their files are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnlens.schemas.errors import AbsentError, InputError
from attnlens.schemas.ranges import parse_ranges


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """How far a capture goes: tokens of the prompt, tokens in all, and rows that can be drawn (fed and committed).

    `kept`: of a cropped store, which tokens it has.
    """

    capture: str
    n_prompt: int
    n_token: int
    n_row: int
    kept: tuple[bool, ...] | None = None

    def has(self, query: int) -> bool:
        """Whether a cropped store kept the token."""
        return self.kept is None or self.kept[query]


QUERIES: Mapping[str, Callable[[Timeline], range]] = {
    "generated": lambda timeline: range(timeline.n_prompt, timeline.n_row),
    "prompt": lambda timeline: range(min(timeline.n_prompt, timeline.n_row)),
    "all": lambda timeline: range(timeline.n_row),
}
"""Names that `--queries` knows beside a list or slice of timeline positions."""


def select_queries(text: str, timeline: Timeline) -> tuple[int, ...]:
    """Timeline positions that `text` names, in increasing order.

    A slice runs over the rows that can be drawn, so that `-5:` is the last five of them.

    Raises:
        InputError: `text` is neither a name nor a list of positions of this timeline.
        AbsentError: a named position was never fed to the model or never committed, or no row was.
    """
    if timeline.n_row == 0:
        raise AbsentError(f"capture {timeline.capture} holds no finished row, there is nothing to draw")
    if chosen := QUERIES.get(text):
        if not (positions := tuple(filter(timeline.has, chosen(timeline)))):
            raise AbsentError(
                f"capture {timeline.capture} has no {text} token that was fed to the model: "
                f"{timeline.n_prompt} prompt tokens, {timeline.n_token - timeline.n_prompt} generated, "
                f"{timeline.n_row} rows stored; try --queries all"
            )
        return positions
    _present(text, timeline)
    try:
        positions = parse_ranges(text, timeline.n_row, option="--queries", thing="query")
    except InputError as error:
        raise InputError(f"{error}; or one of {', '.join(QUERIES)}") from None
    if there := tuple(filter(timeline.has, positions)):
        return there
    raise AbsentError(f"--queries {text}: capture {timeline.capture} was cropped to other tokens")


def _present(text: str, timeline: Timeline) -> None:
    """Tell tokens that exist but have no row from tokens that do not exist."""
    for item in text.split(","):
        name = item.strip()
        if name.isascii() and name.isdecimal() and len(name) <= 18 and timeline.n_row <= int(name) < timeline.n_token:
            raise AbsentError(
                f"--queries {name}: token {name} of capture {timeline.capture} has no row, it was not fed to the model "
                f"or not committed; rows 0 … {timeline.n_row - 1} are there"
            )


def stem(query: int, n_prompt: int) -> str:
    """File name without window and ending: `attn_{i}` for generated token i, `attn_p{q}` for a prompt position."""
    return f"attn_p{query}" if query < n_prompt else f"attn_{query - n_prompt}"
