"""The command `lens export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.options import Json, Quiet, Store

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "lens export --html run.zarr\n\n"
    "lens export run.zarr run.h5\n\n"
    "lens export run.zarr -o one.html --capture 0003"
)
FORMS = {".html": "html", ".h5": "hdf5", ".hdf5": "hdf5"}


def export(
    store: Store,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where to: FILE.html or FILE.h5.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The same.", show_default="STORE.html")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="One file with the viewer and the store in it: opens offline, anywhere.")
    ] = False,
    hdf5: Annotated[
        bool, typer.Option("--hdf5", help="One HDF5 file with everything, for MATLAB, Julia, R; lens import reads it.")
    ] = False,
    captures: Annotated[
        list[str] | None,
        typer.Option("--capture", metavar="ID", help="Which capture; may be given again.", show_default="all"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an HDF5 file that is there.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a store in another form, for people and programs that have no attnlens.

    The form follows from the name of the file: .html is the viewer with the store in it, .h5 or .hdf5 is HDF5.
    """
    from attnlens.console import human_bytes, open_progress, to_json

    form, target = _form(store, file or output, html, hdf5)
    if form == "html":
        from attnlens.render.viewer.single import export_html

        page = export_html(store, target, captures)
        typer.echo(to_json(page) if json else f"{page.path}: {page.bytes / 1e6:.1f} MB, opens in any browser")
        return
    from attnlens.store.tools.hdf5 import export_hdf5

    with open_progress(quiet) as progress:
        made = export_hdf5(store, target, captures=captures or (), overwrite=overwrite, progress=progress)
    typer.echo(to_json(made) if json else f"{made.path}: {len(made.captures)} captures, {human_bytes(made.bytes)}")


def _form(store: str, file: Path | None, html: bool, hdf5: bool) -> tuple[str, Path]:
    """Which form, and which file; the name says it where no option does."""
    from attnlens.schemas.errors import InputError
    from attnlens.store.places import stem_of

    if html and hdf5:
        raise InputError("--html and --hdf5 were given; expected one of them")
    named = FORMS.get(file.suffix.lower()) if file is not None else None
    form = "html" if html else "hdf5" if hdf5 else named
    if form is None:
        what = f"{file} ends in neither .html nor .h5" if file else "no file was named"
        raise InputError(f"{what}; say --html or --hdf5, or name a file with such an ending")
    return form, file or Path(f"{stem_of(store)}.{'html' if form == 'html' else 'h5'}")
