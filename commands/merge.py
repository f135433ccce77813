"""The command `lens merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.options import Json, Overwrite, Quiet

EXAMPLES = (
    "[bold]Example[/bold]\n\nlens merge monday.zarr tuesday.zarr.zip -o week.zarr\n\n"
    "[dim]Captures are numbered anew, in the order of the stores.[/dim]"
)


def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE…", help="Stores, packed or not.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The new store.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Put the captures of many stores into one."""
    from attnlens.console import one_line, open_progress, to_json
    from attnlens.store.tools.merge import merge as write

    with open_progress(quiet) as progress:
        report = write(stores, output, overwrite=overwrite, progress=progress)
    if json:
        typer.echo(to_json(report))
        return
    for name, source in report.captures.items():
        typer.echo(one_line(f"{report.path}#{name}  {source}"))
