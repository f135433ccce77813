"""The command `lens diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.lines import say_again, say_notes
from attnlens.commands.options import LIST, Again, Dpi, Format, Json, Quiet, Resume, Step, Theme, Window, Workers

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "lens diff float32.zarr bfloat16.zarr\n\n"
    "lens diff run.zarr#0000 run.zarr#0001 --queries all -o two-prompts\n\n"
    "lens diff llama.zarr qwen.zarr --align character --json\n\n"
    "lens diff float32.zarr bfloat16.zarr --from diff_3_4.png -o again"
)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A store, or STORE#ID for one capture.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the pictures.")] = Path(
        "diff"
    ),
    capture_a: Annotated[
        str | None, typer.Option("--capture-a", metavar="ID", help="Which capture of A.", show_default="the only one")
    ] = None,
    capture_b: Annotated[
        str | None, typer.Option("--capture-b", metavar="ID", help="Which capture of B.", show_default="the only one")
    ] = None,
    align: Annotated[
        str,
        typer.Option("--align", metavar="HOW", help="token, character (across tokenizers), or auto."),
    ] = "auto",
    queries: Annotated[
        str, typer.Option("--queries", metavar="WHICH", help=f"Of A: generated, prompt, all, or tokens: {LIST}.")
    ] = "generated",
    window: Window = 32,
    step: Step = 5,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="WHICH", help=f"Some layers of A: {LIST}.", show_default="all")
    ] = None,
    heads: Annotated[str, typer.Option("--heads", metavar="HOW", help="As for lens render.")] = "max",
    scale: Annotated[str, typer.Option("--scale", metavar="NAME", help="As for lens render, then B less A.")] = "raw",
    text: Annotated[str, typer.Option("--text", metavar="NAME", help="As for lens render.")] = "token",
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit", metavar="X", help="Colours go from -X to X.", show_default="the largest difference, rounded up"
        ),
    ] = None,
    cmap: Annotated[str, typer.Option("--cmap", metavar="NAME", help="A diverging colormap of matplotlib.")] = "RdBu_r",
    theme: Theme = "light",
    dpi: Dpi = 100,
    workers: Workers = None,
    resume: Resume = False,
    format: Format = "png",
    again: Again = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare two captures: pictures of B less A, and a table of numbers. Needs no model and no torch."""
    from attnlens.render.run.helpers import prepare

    if again is None:
        prepare(workers)

    from attnlens.console import open_progress, to_json
    from attnlens.render.diff.diff import diff as compare
    from attnlens.render.diff.table import summary, table
    from attnlens.render.options import RenderOptions, select_theme

    if again is not None:
        from attnlens.render.recipes.again import draw_diff_again

        say_again(draw_diff_again(again, a, b, output), again, json)
        return
    options = RenderOptions(
        queries=queries,
        window=window,
        step=step,
        layers=layers,
        heads=heads,
        scale=scale,
        text=text,
        cmap=cmap,
        theme=select_theme(theme),
        dpi=dpi,
        format=format,
    )
    with open_progress(quiet) as progress:
        report = compare(
            a,
            b,
            output,
            capture_a=capture_a,
            capture_b=capture_b,
            align=align,
            limit=limit,
            options=options,
            progress=progress,
            n_workers=workers,
            resume=resume,
        )
    if json:
        typer.echo(to_json(report))
        return
    for line in (*table(report), summary(report)):
        typer.echo(line)
    say_notes(report.notes)
