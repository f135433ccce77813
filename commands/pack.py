"""The command `lens pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.lines import say_packed
from attnlens.commands.options import Json, Overwrite, Quiet, Store

EXAMPLES = (
    "[bold]Examples[/bold]\n\nlens pack run.zarr\n\n"
    "lens render run.zarr.zip\n\n"
    "[dim]Every command reads a packed store as it is; nothing needs to be unpacked.[/dim]"
)


def pack(
    store: Store,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The packed store.", show_default="STORE.zip"),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make one file of a store, to send it. Every command opens it in place."""
    from attnlens.console import open_progress
    from attnlens.store.tools.pack import pack as write

    with open_progress(quiet) as progress:
        made = write(store, output, overwrite=overwrite, progress=progress)
    say_packed(made, json)
