"""The page that `lens info` shows: one block a capture, what it is made of, what it lacks. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attnlens.console import human_bytes, one_line
from attnlens.store.info import ArrayInfo, CaptureDescription, StoreDescription
from attnlens.store.naming import few, lines_of

LONGEST = 280
"""Characters of a prompt or answer that are shown."""

MOST_BLOCKS = 6
"""Of more captures than this each is one line."""

SEAMS = {
    "clean": "the tokens of the prompt begin those of the whole text",
    "prompt": "the prompt's tokens stay, the rest continues them",
    "whole": "the tokens of the whole text, some across the seam",
}
"""What the seams between prompt and completion are."""

STYLES = {"complete": "green", "partial": "yellow", "planned": "yellow", "failed": "red"}


def print_page(store: StoreDescription, console: Console | None = None) -> None:
    """Print the page. Nothing that a store holds is read as markup or reaches the terminal as control codes."""
    console = console or Console(highlight=False, markup=False)
    console.print(Text(one_line(store.path), style="bold"))
    console.print(
        f"attnlens store, format {store.version}, {one_line(store.writer)}, {_day(store.created)}, "
        f"{_size(store)}, {_count(len(store.captures), 'capture')}"
    )
    if store.not_begun:
        console.print(f"{_count(store.not_begun, 'planned capture')} not begun")
    if len(store.captures) > MOST_BLOCKS:
        console.print()
        console.print(_list(store.captures))
        console.print("\none of them in full: lens info STORE --capture ID")
        return
    for capture in store.captures:
        console.print()
        console.print(_block(capture))


def _list(captures: list[CaptureDescription]) -> RenderableType:
    """One line a capture."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1), expand=True)
    table.add_column("capture", no_wrap=True)
    table.add_column("prompt id", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("status", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("on disk", justify="right", no_wrap=True)
    table.add_column("prompt, or why it failed", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in captures:
        table.add_row(
            one.id,
            Text(one_line(one.prompt_id or "")),
            Text(one.status, style=STYLES.get(one.status, "")),
            f"{one.n_prompt} + {one.n_generated}",
            human_bytes(one.stored_bytes),
            Text(_short(one.error or one.prompt)),
        )
    return table


def _size(store: StoreDescription) -> str:
    if not store.files:
        return "its size cannot be told from here"
    return f"{human_bytes(store.stored_bytes)} in {store.files} files"


def _block(capture: CaptureDescription) -> RenderableType:
    name = f"  {one_line(capture.prompt_id)}" if capture.prompt_id else ""
    title = Text.assemble((capture.id + name, "bold"), "  ", (capture.status, STYLES.get(capture.status, "")))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in _facts(capture):
        facts.add_row(name, Text(one_line(value)))
    return Group(title, Padding(facts, (0, 0, 1, 2)), Padding(_arrays(capture.arrays), (0, 0, 0, 2)))


def _facts(capture: CaptureDescription) -> Iterator[tuple[str, str]]:
    model, sampling = capture.model, capture.sampling
    yield "model", " ".join(str(part) for part in (model["id"], model["revision"]) if part)
    kinds = ", ".join(f"{count} {kind}" for kind, count in capture.layers.items())
    yield (
        "",
        f"{model['architecture']}, {model['dtype']}, {model['n_layer']} layers ({kinds}) × {model['n_head']} heads",
    )
    if model["quantization"]:
        yield "", f"weights: {_pairs(model['quantization'])}"
    if capture.label:
        yield "label", _short(capture.label)
    yield from _changes(model)
    yield "prompt", _short(capture.prompt)
    if capture.continued:
        yield "", "its last message is continued, not answered"
    if capture.tools is not None:
        yield "tools", _tools(capture.tools)
    yield "given" if sampling["forced"] else "answer", _short(capture.completion)
    yield "tokens", f"{capture.n_prompt} prompt + {capture.n_generated} after it; {capture.committed} rows committed"
    if capture.seam:
        yield "seam", f"{capture.seam}: {SEAMS[capture.seam]}"
    if not sampling["forced"]:
        yield "sampling", _sampling(sampling)
    if sampling["overrides"]:
        yield "settings", _short(_pairs({name: _value(value) for name, value in sampling["overrides"].items()}))
    yield "attention", _attention(capture)
    yield "lens", ", ".join(capture.lenses) or "none"
    if capture.tracked:
        yield "tracked", f"ids {', '.join(map(str, capture.tracked))}"
    yield "captured", f"{_day(capture.created)} on {capture.device}{_seconds(capture.timings)}"
    failed = [str(check["name"]) for check in capture.self_checks if not check["passed"]]
    passed = len(capture.self_checks) - len(failed)
    if capture.self_checks:
        yield (
            "checks",
            f"{passed} of {len(capture.self_checks)} passed" + "".join(f"; failed: {name}" for name in failed),
        )
    if capture.crop:
        yield from _crop(capture.crop)
    for note in few(capture.notes, len(capture.notes)):
        yield "note", _short(note)
    if capture.error:
        yield "ended by", capture.error
    for name, why in capture.absent.items():
        yield "absent", f"{name}: {why}"


def _changes(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the model was made of beside its checkpoint, and what of that it does not use."""
    if model["tokenizer"]:
        yield "tokenizer", _short(model["tokenizer"])
    for name, lines in lines_of(model).items():
        yield from ((name, line) for line in lines)
    unused = [f"{one['tensors']} ({_count(one['count'], 'tensor')}): {one['reason']}" for one in model["left_out"]]
    for line in few(unused, len(unused)):
        yield "not used", _short(line)


def _tools(tools: list[dict[str, Any]]) -> str:
    """How many, and their names where they have some."""
    functions = [tool.get("function", tool) for tool in tools]
    names = [str(one.get("name", "?")) if isinstance(one, dict) else "?" for one in functions]
    return _short(f"{len(tools)}: {', '.join(names)}" if tools else "none")


def _value(value: object) -> object:
    return "unset" if value is None else value


def _crop(crop: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("tokens", "layers", "heads"):
        if crop[name] is not None:
            yield "cropped to", f"{name} {_runs(crop[name])}"
    if crop["dropped"]:
        yield "left out", ", ".join(crop["dropped"])
    if crop["redacted"]:
        yield "redacted", f"tokens {_runs(crop['redacted'])}"
    for name, error in crop["errors"].items():
        yield "rounded", f"{name}, off by up to {error:.4f}"


def _runs(runs: list[list[int]]) -> str:
    return ", ".join(str(start) if stop == start + 1 else f"{start} … {stop - 1}" for start, stop in runs) or "none"


def _arrays(arrays: list[ArrayInfo]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("array", no_wrap=True)
    table.add_column("axes", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    table.add_column("in memory", justify="right", no_wrap=True)
    table.add_column("on disk", justify="right", no_wrap=True)
    small = [array for array in arrays if len(array.axes) < 2]
    for array in sorted((array for array in arrays if len(array.axes) > 1), key=lambda array: -array.raw_bytes):
        axes = " × ".join(f"{axis} {size}" for axis, size in array.axes.items())
        row = (array.name, axes, array.dtype, human_bytes(array.raw_bytes), human_bytes(array.stored_bytes))
        table.add_row(*(Text(one_line(cell)) for cell in row))
    raw, stored = sum(array.raw_bytes for array in small), sum(array.stored_bytes for array in small)
    table.add_row(f"and {len(small)} more", "tokens, text, coordinates", "", human_bytes(raw), human_bytes(stored))
    return table


def _attention(capture: CaptureDescription) -> str:
    """How attention is kept, and why, where the program chose it."""
    ways = {"dense": "dense: every weight", "qk": f"qk: queries and keys in {capture.attention_dtype}, replayed"}
    told = ways.get(capture.attention or "", "none")
    return told if capture.attention_choice is None else f"{told} ({capture.attention_choice})"


def _sampling(sampling: dict[str, object]) -> str:
    if not sampling["temperature"]:
        return f"greedy, up to {sampling['max_new_tokens']} tokens"
    return (
        f"temperature {sampling['temperature']}, top-p {sampling['top_p']}, seed {sampling['seed']}, "
        f"up to {sampling['max_new_tokens']} tokens"
    )


def _seconds(timings: dict[str, float]) -> str:
    return f" in {timings['total_s']:.1f} s" if "total_s" in timings else ""


def _pairs(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {_pairs(value) if isinstance(value, dict) else value}" for name, value in values.items())


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _day(moment: str) -> str:
    return one_line(moment[:16].replace("T", " "))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
