"""The page that `lens plan` shows. Fits 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnlens.console import human_bytes, one_line

if TYPE_CHECKING:
    from attnlens.capture.forecast.forecast import Forecast
    from attnlens.capture.forecast.many import ManyForecast
    from attnlens.capture.forecast.sizes import ModeSize

LARGEST = 6
"""Arrays that have a line of their own among many captures."""


def print_page(plan: Forecast, console: Console | None = None) -> None:
    """Print the page."""
    console = console or Console(highlight=False, markup=False)
    _model(plan, console)
    console.print(f"{plan.n_prompt} prompt tokens + up to {plan.n_new} after them = {plan.capacity}")
    for mode in plan.modes:
        console.print()
        low, high = map(human_bytes, mode.disk_bytes)
        taken = ", this capture's" if mode.mode == plan.attention else ""
        console.print(Text.assemble((f"attention {mode.mode}", "bold"), f"{taken}  {low} … {high} on disk"))
        console.print(_arrays(mode))
    _unread(plan.lens_first and f"tokens from {plan.lens_first} on of {plan.capacity}", console)
    _rest(plan, console, "peak memory")


def print_many(plan: ManyForecast, console: Console | None = None) -> None:
    """Print the page of many prompts."""
    console = console or Console(highlight=False, markup=False)
    _model(plan, console)
    kept = f", {len(plan.kept)} are complete already" if plan.kept else ""
    refused = f", {len(plan.refused)} would be refused" if plan.refused else ""
    console.print(f"{len(plan.prompts)} prompts to capture{kept}{refused}")
    if plan.prompts:
        tokens = [one.n_prompt for one in plan.prompts]
        new = sum(one.n_new for one in plan.prompts)
        console.print(
            f"{sum(tokens):,} prompt tokens ({min(tokens):,} … {max(tokens):,} each) + up to {new:,} after them"
        )
        low, high = map(human_bytes, plan.disk_bytes)
        console.print()
        console.print(
            Text.assemble(("all captures", "bold"), f"  {low} … {high} on disk, {plan.raw_bytes:,} bytes of arrays")
        )
    for mode in plan.modes if plan.prompts else ():
        low, high = map(human_bytes, mode.disk_bytes)
        count = plan.attention.get(mode.mode, 0)
        taken = f", taken by {'all' if count == len(plan.prompts) else count}" if count else ""
        console.print()
        console.print(Text.assemble((f"attention {mode.mode}", "bold"), f"{taken}  {low} … {high} on disk"))
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        table.add_column("array", no_wrap=True)
        table.add_column("exact bytes, all captures", justify="right", no_wrap=True)
        for name, size in list(mode.arrays.items())[:LARGEST]:
            table.add_row(name, f"{size:,}")
        rest = list(mode.arrays.values())[LARGEST:]
        table.add_row(f"{len(rest)} more", f"{sum(rest):,}")
        table.add_row("all", f"{mode.raw_bytes:,}")
        console.print(table)
    _unread("" if plan.lens_tokens == "all" else plan.lens_tokens, console)
    _rest(plan, console, f"peak memory of the largest capture, {one_line(plan.largest or '')}")


def _model(plan: Forecast | ManyForecast, console: Console) -> None:
    console.print(Text(one_line(plan.model), style="bold"))
    quantized = f", {plan.quantize} by bitsandbytes" if plan.quantize else ""
    console.print(f"{one_line(plan.architecture)}, {plan.n_parameters / 1e6:.1f} M parameters, {plan.dtype}{quantized}")
    console.print(f"{plan.n_attending} of {plan.n_layer} layers with attention, {plan.n_head} heads")


def _unread(which: str | int, console: Console) -> None:
    if which:
        console.print(
            f"\nlenses read {which}\nexact bytes stay: arrays keep their shape, and tokens that are not read hold\n"
            "fill values, which take next to no room on the disk"
        )


def _rest(plan: Forecast | ManyForecast, console: Console, title: str) -> None:
    """Refused encodings, remarks, the store that is replaced, memory, and what only weights can tell."""
    if plan.replaced_bytes is not None:
        console.print(
            f"\nboth stores need room on the disk: the one that is replaced, "
            f"{human_bytes(plan.replaced_bytes)},\nstays until the new one is complete"
        )
    for note in getattr(plan, "notes", ()):
        console.print(f"\nnote: {one_line(note)}")
    for mode_name, why in plan.refused_modes.items():
        console.print(f"\nattention {mode_name}: not of this model: {one_line(why)}")
    for place, parts in plan.memory.items():
        console.print()
        console.print(Text.assemble((f"{title}, {place}", "bold"), f"  about {human_bytes(plan.peak[place])}"))
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        for name, size in parts.items():
            table.add_row(f"  {name}", human_bytes(size))
        console.print(table)
    console.print("\nOnly with the weights it is known")
    for what in plan.only_with_weights:
        console.print(f"  - {what}")


def _arrays(mode: ModeSize) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("array", no_wrap=True)
    table.add_column("axes", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    table.add_column("exact bytes", justify="right", no_wrap=True)
    large = [array for array in mode.arrays if array.raw_bytes is not None and len(array.axes) > 1]
    for array in large:
        axes = " × ".join(f"{axis} {size}" for axis, size in array.axes.items())
        table.add_row(array.name, axes, array.dtype, f"{array.raw_bytes:,}")
    small = sum(array.raw_bytes or 0 for array in mode.arrays if array not in large)
    table.add_row(f"{len(mode.arrays) - len(large)} more", "coordinates, tokens; texts not counted", "", f"{small:,}")
    table.add_row("all", "", "", f"{mode.raw_bytes:,}")
    return table
