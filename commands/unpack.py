"""The command `lens unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.lines import say_packed
from attnlens.commands.options import Json, Overwrite, Quiet, Store

EXAMPLES = (
    "[bold]Example[/bold]\n\nlens unpack run.zarr.zip -o run.zarr\n\n"
    "[dim]Needed only to add captures to a packed store, or for a program that cannot read zips.[/dim]"
)


def unpack(
    store: Store,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="The store's folder.", show_default="the zip's name"),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a folder of a packed store: the files that were packed, byte for byte."""
    from attnlens.console import open_progress
    from attnlens.store.tools.pack import unpack as write

    with open_progress(quiet) as progress:
        made = write(store, output, overwrite=overwrite, progress=progress)
    say_packed(made, json)
