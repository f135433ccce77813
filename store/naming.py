"""What a capture's model is called wherever it is named: its id, and what tells this run from others of that model.

Pure, and safe with stores from strangers: what it adds to the id is one printable line, and short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attnlens.schemas.metadata import LABEL_LIMIT, Adapter, CaptureMetadata, Hook, ModelInfo
from attnlens.schemas.plain_text import one_line, shortened

NAMES = 3
"""Adapters that a name lists; of more it says how many."""
LINES = 16
"""Adapters, or hooks, that are described; of more it is said how many."""
WORD = 40
PATH = 100
"""Characters of an adapter's name; of a path or a function."""
DIGITS = 12
"""Digits of a digest or commit that are shown."""


def model_name(about: CaptureMetadata) -> str:
    """`NAME (label)`; without a label `NAME + adapter A`, `NAME, hooked` or both; `NAME` if nothing changed the model.

    An adapter that is neither active nor merged changes nothing.
    """
    label = label_of(about)
    return f"{about.model.id} ({label})" if label else f"{about.model.id}{changes_of(about.model)}"


def changes_of(model: ModelInfo) -> str:
    """What the name of a model that has no label ends with: ` + adapter A, hooked`; empty if nothing changed it."""
    adapters = [shortened(one.name, WORD) for one in model.adapters if one.active or one.merged]
    listed = ", ".join(adapters[:NAMES]) + (f" and {len(adapters) - NAMES} more" if len(adapters) > NAMES else "")
    added = f" + adapter{'s' if len(adapters) > 1 else ''} {listed}" if adapters else ""
    return added + (", hooked" if model.hooks else "")


def tell_apart(a: CaptureMetadata, b: CaptureMetadata) -> tuple[str, str]:
    """The names of two captures' models, with as much more as it takes for them to differ, as far as the records do."""
    names = model_name(a), model_name(b)
    further: tuple[Callable[[CaptureMetadata, CaptureMetadata], str], ...] = (
        lambda one, _: changes_of(one.model),
        lambda one, other: _only(adapter_lines(one.model.adapters), adapter_lines(other.model.adapters)),
        lambda one, other: _only(hook_lines(one.model.hooks), hook_lines(other.model.hooks)),
        lambda one, _: f" at {one_line(one.model.revision[:DIGITS])}" if one.model.revision else "",
    )
    for more in further:
        if names[0] != names[1]:
            break
        found = more(a, b), more(b, a)
        if found[0] != found[1]:
            names = names[0] + found[0], names[1] + found[1]
    return names


def label_of(about: CaptureMetadata) -> str:
    """The label as one printable line, empty where there is none."""
    return shortened(about.label or "", LABEL_LIMIT).strip()


def adapter_lines(adapters: Sequence[Adapter]) -> list[str]:
    """A line for each adapter: `default: LORA, rank 8, scaling 2, on q_proj, v_proj; sha256 0123456789ab`."""
    return few([_adapter(one) for one in adapters[:LINES]], len(adapters))


def hook_lines(hooks: Sequence[Hook]) -> list[str]:
    """A line for each hook: `forward on model.layers.3.mlp: mine.ablate`."""
    return few([_hook(one) for one in hooks[:LINES]], len(hooks))


def lines_of(model: Mapping[str, Any]) -> dict[str, list[str]]:
    """The lines of the adapters and hooks in a model's record as plain data, by `adapter` and `hook`."""
    return {
        "adapter": adapter_lines([Adapter.model_validate(one) for one in model["adapters"]]),
        "hook": hook_lines([Hook.model_validate(one) for one in model["hooks"]]),
    }


def few(lines: Sequence[str], count: int) -> list[str]:
    """The first `LINES` lines of `count`, and how many more there are."""
    return [*lines[:LINES], *([f"and {count - LINES} more"] if count > LINES else [])]


def told(about: CaptureMetadata) -> dict[str, Any]:
    """What goes beside a model's id into recipes, attributes and exports: nothing for a model that nothing changed."""
    found: dict[str, Any] = {}
    if label := label_of(about):
        found["label"] = label
    if about.model.adapters:
        found["adapters"] = adapter_lines(about.model.adapters)
    if about.model.hooks:
        found["hooks"] = hook_lines(about.model.hooks)
    return found


def _only(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """The first of the lines that only we have, in brackets."""
    own = [line for line in ours if line not in theirs]
    more = f" and {len(own) - 1} more" if len(own) > 1 else ""
    return f" [{own[0]}{more}]" if own else ""


def _adapter(adapter: Adapter) -> str:
    parts = [shortened(adapter.type, WORD)]
    if adapter.rank is not None:
        parts.append(f"rank {adapter.rank}")
    if adapter.scaling is not None:
        parts.append(f"scaling {adapter.scaling:g}")
    if adapter.targets:
        parts.append(f"on {shortened(', '.join(adapter.targets[:LINES]), PATH)}")
    state = [word for word, holds in (("merged", adapter.merged), ("inactive", not adapter.active)) if holds]
    about = "; ".join([", ".join(parts), *state, f"sha256 {one_line(adapter.digest[:DIGITS])}"])
    return f"{shortened(adapter.name, WORD)}: {about}"


def _hook(hook: Hook) -> str:
    place = {"": "the whole model", "*": "every module"}.get(hook.module) or shortened(hook.module, PATH)
    count = f" ({hook.count} modules)" if hook.count > 1 else ""
    return f"{shortened(hook.kind, WORD)} on {place}{count}: {shortened(hook.function, PATH)}"
