"""The command `lens export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.options import Json, Store

EXAMPLES = (
    "[bold]Examples[/bold]\n\nlens export --html run.zarr\n\nlens export --html run.zarr -o one.html --capture 0003"
)


def export(
    store: Store,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to.", show_default="STORE.html")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="One file with the viewer and the store in it: opens offline, anywhere.")
    ] = False,
    captures: Annotated[
        list[str] | None,
        typer.Option("--capture", metavar="ID", help="Which capture; may be given again.", show_default="all"),
    ] = None,
    json: Json = False,
) -> None:
    """Write a store in another form, for people and programs that have no attnlens."""
    from attnlens.console import to_json
    from attnlens.render.viewer.single import export_html
    from attnlens.schemas.errors import InputError
    from attnlens.store.places import stem_of

    if not html:
        raise InputError("lens export: say in which form, for example --html")
    made = export_html(store, output or Path(f"{stem_of(store)}.html"), captures)
    typer.echo(to_json(made) if json else f"{made.path}: {made.bytes / 1e6:.1f} MB, opens in any browser")
