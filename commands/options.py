"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FILES = "Files"
"""Panel of options about the files that are written."""

Json = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a store that is there.")]
Window = Annotated[int, typer.Option("--window", metavar="N", help="Columns in a picture.")]
Step = Annotated[int, typer.Option("--step", metavar="N", help="Columns from one picture to the next.")]
Theme = Annotated[str, typer.Option("--theme", metavar="NAME", help="light or dark.")]
Dpi = Annotated[int, typer.Option("--dpi", metavar="N", help="Resolution.")]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Processes that draw.", show_default="all processors")
]
Resume = Annotated[bool, typer.Option("--resume", help="Keep pictures that are there, whole and the same.")]
Format = Annotated[str, typer.Option("--format", metavar="NAME", rich_help_panel=FILES, help="png, svg, pdf or webp.")]
Again = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="PICTURE",
        rich_help_panel=FILES,
        help="Draw this one picture again, from the recipe inside it.",
    ),
]
LIST = "3,5-7 or 10:20:2 or -1"
"""How a list of numbers is written, in the help of every option that takes one; `schemas/ranges.py` reads it."""
Store = Annotated[
    str,
    typer.Argument(metavar="STORE", help="A store: run.zarr, or one that is packed, run.zarr.zip.", show_default=False),
]
