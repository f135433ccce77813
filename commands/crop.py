"""The command `lens crop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.lines import say_notes
from attnlens.commands.options import LIST, Json, Overwrite, Quiet, Store

WHAT, HOW = "What stays", "How it is kept"

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "lens crop run.zarr --lite -o small.zarr\n\n"
    "lens crop run.zarr --layers 8:16 --heads 0,3,7 -o part.zarr\n\n"
    "lens crop run.zarr --redact Alice --redact 57:63 -o share.zarr\n\n"
    "[dim]Then: lens pack small.zarr[/dim]"
)


def crop(
    store: Store,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="The new store.", show_default="STORE-crop.zarr"),
    ] = None,
    captures: Annotated[
        str | None, typer.Option("--captures", metavar="ID,…", rich_help_panel=WHAT, help="Some of the captures.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="WHICH", rich_help_panel=WHAT, help=f"Some tokens: {LIST}.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="WHICH", rich_help_panel=WHAT, help=f"Some layers: {LIST}.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option("--heads", metavar="WHICH", rich_help_panel=WHAT, help=f"Some heads: {LIST}.")
    ] = None,
    arrays: Annotated[
        str | None,
        typer.Option(
            "--arrays", metavar="NAME,…", rich_help_panel=WHAT, help="Some arrays; -NAME leaves one out, as =-NAME."
        ),
    ] = None,
    lite: Annotated[
        bool,
        typer.Option(
            "--lite", rich_help_panel=WHAT, help="What default pictures show: maximum over heads, first choices."
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="uint8", rich_help_panel=HOW, help="Weights as 8-bit square roots, off by up to 0.0041."
        ),
    ] = None,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            "--redact", metavar="SPAN", rich_help_panel=HOW, help=f"A text, or tokens ({LIST}), to leave no trace of."
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a smaller store of a store. Tokens, layers and heads keep their numbers."""
    from attnlens.console import human_bytes, open_progress, to_json
    from attnlens.store.tools.crop import crop as write
    from attnlens.store.tools.keep import Keep

    keep = Keep(tokens=tokens, layers=layers, heads=heads, arrays=_listed(arrays), lite=lite)
    with open_progress(quiet) as progress:
        report = write(
            store,
            output,
            captures=_listed(captures),
            keep=keep,
            dtype=dtype,
            redact=redact or (),
            overwrite=overwrite,
            progress=progress,
        )
    sizes = f"{human_bytes(report.bytes)} of {human_bytes(report.bytes_before)}"
    typer.echo(to_json(report) if json else f"{report.path}: {', '.join(report.captures)}, {sizes}")
    say_notes(report.notes)


def _listed(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]
