"""The command `lens import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.options import Json, Overwrite, Quiet

EXAMPLES = "[bold]Example[/bold]\n\nlens import run.h5 -o run.zarr"


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What lens export wrote: run.h5.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="The new store.", show_default="FILE.zarr")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a store again of an HDF5 file that `lens export` wrote."""
    from attnlens.console import open_progress, to_json
    from attnlens.store.tools.hdf5_import import import_hdf5

    with open_progress(quiet) as progress:
        made = import_hdf5(file, output or Path(f"{file.stem}.zarr"), overwrite=overwrite, progress=progress)
    typer.echo(to_json(made) if json else f"{made.path}: {len(made.captures)} captures. Next: lens info {made.path}")
