"""The command `lens render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnlens.commands.lines import say_again, say_notes
from attnlens.commands.options import (
    FILES,
    LIST,
    Again,
    Dpi,
    Format,
    Json,
    Quiet,
    Resume,
    Step,
    Store,
    Theme,
    Window,
    Workers,
)

SHOWN = "What is shown"
HEADS = (
    "max, mean, min or median over all heads; over some: 0,3,5-7 or 0:4:mean; kv-group:N, top:N:entropy, "
    "top:N:induction, rollout; each for a picture a head."
)

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "lens render run.zarr\n\n"
    "lens render run.zarr -o last --queries prompt --window 48\n\n"
    "lens render run.zarr --layers 8:16 --heads 0,3,7 --cmap viridis\n\n"
    "lens render run.zarr --from attn_3_4.png"
)


def render(
    store: Store,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for the pictures.", show_default="STORE-pictures"),
    ] = None,
    capture: Annotated[
        str | None,
        typer.Option("--capture", metavar="ID", help="Which capture, or id of a prompt.", show_default="all"),
    ] = None,
    queries: Annotated[
        str, typer.Option("--queries", metavar="WHICH", help=f"generated, prompt, all, or tokens: {LIST}.")
    ] = "generated",
    window: Window = 32,
    step: Step = 5,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", metavar="WHICH", rich_help_panel=SHOWN, help=f"Some of the rows: {LIST}.", show_default="all"
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="WHICH", rich_help_panel=SHOWN, help=f"Some of the columns: {LIST}.", show_default="all"
        ),
    ] = None,
    heads: Annotated[str, typer.Option("--heads", metavar="HOW", rich_help_panel=SHOWN, help=HEADS)] = "max",
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            metavar="NAME",
            rich_help_panel=SHOWN,
            help="raw (0 … 1), log, rank, drop-sink (without first and special tokens), value-norm.",
        ),
    ] = "raw",
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="NAME",
            rich_help_panel=SHOWN,
            help="In the cells: token, probability, top-k, entropy, next-rank, weight.",
            show_default="token; in maps weight",
        ),
    ] = None,
    lens: Annotated[
        str | None,
        typer.Option(
            "--lens",
            metavar="NAME",
            rich_help_panel=SHOWN,
            help="Which of the store's lenses is read.",
            show_default="its first",
        ),
    ] = None,
    map: Annotated[
        str | None,
        typer.Option(
            "--map",
            metavar="LAYER[.HEAD]",
            rich_help_panel=SHOWN,
            help="Instead: queries × keys of a layer, or a head (17.4).",
        ),
    ] = None,
    cmap: Annotated[str, typer.Option("--cmap", metavar="NAME", help="A colormap of matplotlib.")] = "coolwarm",
    theme: Theme = "light",
    dpi: Dpi = 100,
    palette: Annotated[
        bool, typer.Option("--palette", help="PNGs of 256 colours: smaller, drawn faster, fills a little off.")
    ] = False,
    workers: Workers = None,
    resume: Resume = False,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="dask://HOST:PORT", help="Draw on a Dask cluster; dask://local starts one."),
    ] = None,
    format: Format = "png",
    sheet: Annotated[
        bool,
        typer.Option(
            "--sheet", rich_help_panel=FILES, help="All windows of a token on one page; with --heads each, all heads."
        ),
    ] = False,
    animate: Annotated[
        str | None,
        typer.Option(
            "--animate",
            metavar="NAME",
            rich_help_panel=FILES,
            help="One animation over the tokens instead: gif, apng, mp4.",
        ),
    ] = None,
    fps: Annotated[
        float, typer.Option("--fps", metavar="N", rich_help_panel=FILES, help="Tokens a second in an animation.")
    ] = 2.0,
    gallery: Annotated[
        bool, typer.Option("--gallery/--no-gallery", rich_help_panel=FILES, help="index.html beside the pictures.")
    ] = True,
    again: Again = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Draw pictures from a store: one for every generated token and window of columns. Needs no model and no torch."""
    from attnlens.render.run.helpers import prepare

    if again is None and animate is None and engine is None and not queries.isdecimal():
        prepare(workers)

    from attnlens.console import human_bytes, open_progress, to_json
    from attnlens.render.options import RenderOptions, select_theme
    from attnlens.render.pictures import RenderReport
    from attnlens.render.pictures import render as draw
    from attnlens.store.places import stem_of

    options = RenderOptions(
        capture=capture,
        queries=queries,
        tokens=tokens,
        window=window,
        step=step,
        layers=layers,
        heads=heads,
        scale=scale,
        text=text,
        lens=lens,
        map=map,
        cmap=cmap,
        theme=select_theme(theme),
        dpi=dpi,
        palette=palette,
        format=format,
        sheet=sheet,
    )
    folder = output or Path(f"{stem_of(store)}-pictures")
    if again is not None:
        from attnlens.render.recipes.again import draw_again

        say_again(draw_again(again, store, folder), again, json)
        return
    with open_progress(quiet) as progress:
        if animate is not None:
            from attnlens.render.films.animate import render_films

            report = render_films(store, folder, film=animate, fps=fps, options=options, progress=progress)
        else:
            report = draw(
                store,
                folder,
                options=options,
                progress=progress,
                n_workers=workers,
                resume=resume,
                engine=_engine(engine),
                gallery=gallery,
            )
    if json:
        typer.echo(to_json(report))
        return
    kept = f", {report.kept} were there" if resume else ""
    typer.echo(f"{report.folder}: {report.count} pictures in {report.seconds:.1f} s{kept}")
    if isinstance(report, RenderReport) and report.requests:
        typer.echo(f"fetched {human_bytes(report.fetched_bytes)} in {report.requests} requests", err=True)
    say_notes(report.notes)
    if report.missing_characters:
        typer.echo(f"note: {report.missing_characters} of the characters are in no font here: drawn as U+…", err=True)


def _engine(address: str | None) -> Any:
    """What `--engine` names; None draws on this machine's processes."""
    if address is None:
        return None
    from attnlens.render.run.cluster import Cluster

    return Cluster(address)
