"""The page that `lens plan` shows. Fits 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnlens.console import human_bytes, one_line

if TYPE_CHECKING:
    from attnlens.capture.forecast.forecast import Forecast
    from attnlens.capture.forecast.sizes import ModeSize


def print_page(plan: Forecast, console: Console | None = None) -> None:
    """Print the page."""
    console = console or Console(highlight=False, markup=False)
    console.print(Text(one_line(plan.model), style="bold"))
    quantized = f", {plan.quantize} by bitsandbytes" if plan.quantize else ""
    console.print(f"{one_line(plan.architecture)}, {plan.n_parameters / 1e6:.1f} M parameters, {plan.dtype}{quantized}")
    console.print(f"{plan.n_attending} of {plan.n_layer} layers with attention, {plan.n_head} heads")
    console.print(f"{plan.n_prompt} prompt tokens + up to {plan.n_new} after them = {plan.capacity}")
    for mode in plan.modes:
        console.print()
        low, high = map(human_bytes, mode.disk_bytes)
        taken = ", this capture's" if mode.mode == plan.attention else ""
        console.print(Text.assemble((f"attention {mode.mode}", "bold"), f"{taken}  {low} … {high} on disk"))
        console.print(_arrays(mode))
    for mode_name, why in plan.refused_modes.items():
        console.print(f"\nattention {mode_name}: not of this model: {one_line(why)}")
    for place, parts in plan.memory.items():
        console.print()
        console.print(Text.assemble((f"peak memory, {place}", "bold"), f"  about {human_bytes(plan.peak[place])}"))
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
