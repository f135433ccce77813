"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a store that is there.")]
Window = Annotated[int, typer.Option("--window", metavar="N", help="Columns in a picture.")]
Step = Annotated[int, typer.Option("--step", metavar="N", help="Columns from one picture to the next.")]
Theme = Annotated[str, typer.Option("--theme", metavar="NAME", help="light or dark.")]
Dpi = Annotated[int, typer.Option("--dpi", metavar="N", help="Resolution.")]
Store = Annotated[
    str,
    typer.Argument(metavar="STORE", help="A store: run.zarr, or one that is packed, run.zarr.zip.", show_default=False),
]
