"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Window = Annotated[int, typer.Option("--window", metavar="N", help="Columns in a picture.")]
Step = Annotated[int, typer.Option("--step", metavar="N", help="Columns from one picture to the next.")]
Theme = Annotated[str, typer.Option("--theme", metavar="NAME", help="light or dark.")]
Dpi = Annotated[int, typer.Option("--dpi", metavar="N", help="Resolution.")]
Store = Annotated[Path, typer.Argument(help="A store, for example run.zarr.", show_default=False)]
