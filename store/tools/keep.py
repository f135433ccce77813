"""What a crop keeps: along each axis, and of the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnlens.schemas.arrays import ARRAY
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.schemas.ranges import parse_ranges, runs_of
from attnlens.store.reader import Capture

LITE = frozenset({"attention_max", "lens_token", "lens_probability"})
"""Of the arrays that may be left out, those that default pictures are drawn from."""
NEEDED = frozenset({"always", "finished", "proof"})


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What to keep, as a person says it (`3,5-7`, `10:20:2`, `-1`); None keeps all.

    `arrays` with a minus in front name what to leave out.
    """

    tokens: str | None = None
    layers: str | None = None
    heads: str | None = None
    arrays: Sequence[str] = ()
    lite: bool = False


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The same for one capture: runs [start, stop) in its numbering, and names of the arrays that go."""

    tokens: list[list[int]] | None
    layers: list[list[int]] | None
    heads: list[list[int]] | None
    dropped: frozenset[str]


def kept(capture: Capture, keep: Keep) -> Kept:
    """What is kept of `capture`.

    Raises:
        InputError: it has no such tokens, layers, heads or arrays.
    """
    model = capture.metadata.model
    sizes = {"tokens": capture.n_token, "layers": model.n_layer, "heads": model.n_head}
    runs = {
        name: runs_of(parse_ranges(text, size, option=f"--{name}", thing=name.removesuffix("s")))
        for name, size in sizes.items()
        if (text := getattr(keep, name)) is not None
    }
    dropped = _dropped(capture, keep)
    return Kept(tokens=runs.get("tokens"), layers=runs.get("layers"), heads=runs.get("heads"), dropped=dropped)


def may_go(capture: Capture, name: str) -> bool:
    """Whether an array may be left out: not the timeline, not a coordinate, not the vocabulary of what stays."""
    spec = capture.specs.get(name)
    if spec is None:
        return True
    return spec.axes != (spec.name,) and spec.presence not in NEEDED and spec.axes != ("entry",)


def _dropped(capture: Capture, keep: Keep) -> frozenset[str]:
    free = {name for name in capture.names if may_go(capture, name)}
    wanted = {name for name in keep.arrays if not name.startswith("-")}
    unwanted = {name[1:] for name in keep.arrays if name.startswith("-")}
    for name in sorted(wanted | unwanted):
        if name in capture:
            if name in unwanted and name not in free:
                raise InputError(f"--arrays -{name}: no capture can do without it")
        elif name not in ARRAY:
            raise InputError(f"--arrays: there is no {name}; it has {', '.join(sorted(free))}")
        elif name in wanted:
            raise AbsentError(f"--arrays: capture {capture.id} has no {name}: {capture.why_absent(name)}")
    stay = free if not wanted else free & wanted
    if keep.lite:
        stay = stay & LITE
    return frozenset(free - (stay - unwanted))
