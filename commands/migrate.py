"""The command `lens migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.options import Json, Overwrite, Quiet, Store

EXAMPLES = (
    "[bold]Examples[/bold]\n\nlens migrate old.zarr --dry-run\n\nlens migrate old.zarr -o new.zarr\n\n"
    "[dim]The old store is kept as it is. A store of this version has nothing to do.[/dim]"
)


def migrate(
    store: Store,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="The new store.", show_default="STORE-format-1.zarr"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, write nothing.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a store of this format version out of one of an older version."""
    from attnlens.console import one_line, open_progress, to_json
    from attnlens.store.tools.migrate import migrate as write

    with open_progress(quiet) as progress:
        report = write(store, output, dry_run=dry_run, overwrite=overwrite, progress=progress)
    if json:
        typer.echo(to_json(report))
        return
    for change in report.changes:
        typer.echo(one_line(change))
    if not report.changes:
        typer.echo(one_line(f"{store}: nothing to do, it has format version {report.version}"))
    elif report.path is not None:
        typer.echo(one_line(f"{report.path}: format version {report.target}; {store} is as it was"))
    else:
        typer.echo("nothing was written")
