"""The command `lens export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnlens.commands.lines import say_notes
from attnlens.commands.options import Json, Quiet, Store

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "lens export --html run.zarr\n\n"
    "lens export run.zarr run.h5\n\n"
    "lens export run.zarr lens.parquet\n\n"
    "lens export run.zarr --format npz\n\n"
    "lens export run.zarr -o one.safetensors --capture 0003\n\n"
    "[dim]Then, of the parquet file: pandas.read_parquet('lens.parquet'). What is in\n"
    "each form, and how it is read: docs/export.md[/dim]"
)
ENDINGS = {
    "html": (".html",),
    "hdf5": (".h5", ".hdf5"),
    "parquet": (".parquet",),
    "npz": (".npz",),
    "safetensors": (".safetensors",),
    "inif": (".inif.json", ".inif", ".inif.json.gz", ".inif.gz"),
}
"""Forms, each with the endings of its files; a file that nobody named has the first."""


def export(
    store: Store,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where to; its ending says the form.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The same.", show_default="STORE with the ending"),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help=f"{', '.join(ENDINGS)}.", show_default="by the ending"),
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a store in another form, for people and programs that have no attnlens.

    .html: the viewer with the store in it, opens offline
    .h5: everything, lossless, for MATLAB, Julia, R
    .parquet: what lenses read, as a table for pandas, polars, R
    .npz, .safetensors: the arrays, for numpy, torch, JAX
    .inif.json: tokens and spans, for the tools around nnsight
    """
    from attnlens.console import human_bytes, open_progress, to_json

    form, target = _form(store, file or output, form, html, hdf5)
    if form == "html":
        from attnlens.render.viewer.single import export_html

        page = export_html(store, target, captures, overwrite=overwrite)
        typer.echo(to_json(page) if json else f"{page.path}: {page.bytes / 1e6:.1f} MB, opens in any browser")
        return
    with open_progress(quiet) as progress:
        made = _writer(form)(store, target, captures=captures or (), overwrite=overwrite, progress=progress)
    typer.echo(to_json(made) if json else f"{made.path}: {len(made.captures)} captures, {human_bytes(made.bytes)}")
    say_notes(made.notes)


def _writer(form: str) -> Any:
    """What writes a form, imported when it is asked for."""
    match form:
        case "hdf5":
            from attnlens.store.tools.hdf5 import export_hdf5 as write
        case "parquet":
            from attnlens.store.tools.parquet import export_parquet as write
        case "npz":
            from attnlens.store.tools.npz import export_npz as write
        case "safetensors":
            from attnlens.store.tools.safetensors import export_safetensors as write
        case _:
            from attnlens.store.tools.inif import export_inif as write
    return write


def _form(store: str, file: Path | None, form: str | None, html: bool, hdf5: bool) -> tuple[str, Path]:
    """Which form, and which file; the name says it where no option does."""
    from attnlens.schemas.errors import InputError
    from attnlens.store.places import stem_of

    asked = {f"--format {form}": form, "--html": "html" if html else None, "--hdf5": "hdf5" if hdf5 else None}
    given = {option: wanted for option, wanted in asked.items() if wanted is not None}
    if len(set(given.values())) > 1:
        raise InputError(f"{' and '.join(given)} were given; expected one of them")
    if form is not None and form not in ENDINGS:
        raise InputError(f"--format {form}: there is no such form; expected {', '.join(ENDINGS)}")
    found = next(iter(given.values()), None) or (_by_ending(file.name) if file is not None else None)
    if found is None:
        what = f"the ending of {file} says no form" if file else "no file was named"
        known = ", ".join(endings[0] for endings in ENDINGS.values())
        raise InputError(f"{what}; say --format NAME, or name a file that ends in {known}")
    return found, file or Path(stem_of(store) + ENDINGS[found][0])


def _by_ending(name: str) -> str | None:
    return next((form for form, endings in ENDINGS.items() if name.lower().endswith(endings)), None)
