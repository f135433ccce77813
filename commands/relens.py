"""The command `lens relens`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.options import Json, Quiet, Store

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "lens relens run.zarr --lens tuned:./my-lens\n\n"
    "lens relens run.zarr --lens logit --lens tuned:./my-lens -m ./my-model\n\n"
    "lens render run.zarr --lens tuned"
)


def relens(
    store: Store,
    lens: Annotated[
        list[str],
        typer.Option(
            "--lens",
            metavar="NAME",
            help="tuned:FOLDER, tuned:hf://OWNER/NAME or logit; may be repeated.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="MODEL", help="Where the model is.", show_default="as captured"),
    ] = None,
    capture: Annotated[
        str | None, typer.Option("--capture", metavar="ID", help="Which capture.", show_default="all")
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", help="Tokens kept a position, in a store without a lens.")
    ] = 5,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="Of the model.", show_default="as captured"),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1.")] = "auto",
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Commit, tag or branch on the hub.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Add what another lens reads to a store that was captured with --residuals.

    Needs pip install 'attnlens\\[capture]' and the model, which is not run over the text again.

    It reads the tokens that the capture's first lens read (--lens-tokens), all of them in a capture without a lens.

    If it fails, or is killed, each capture is as it was or has the lens; the same command goes on with the others.
    """
    from attnlens.capture.extra import require_capture_extra
    from attnlens.console import open_progress, to_json

    require_capture_extra()
    with open_progress(quiet) as progress:
        progress.stage("loading")
        from attnlens.capture.relens import RelensOptions
        from attnlens.capture.relens import relens as add

        report = add(
            RelensOptions(
                store=Path(store),
                lenses=tuple(lens),
                model=model,
                capture=capture,
                dtype=dtype,
                device=device,
                revision=revision,
                trust_remote_code=trust_remote_code,
                top_k=top_k,
            ),
            progress,
        )
    if json:
        typer.echo(to_json(report))
        return
    for name, lenses in report.added.items():
        typer.echo(f"{store}: capture {name} has now also {', '.join(lenses)}")
    last = next(iter(report.added.values()))[-1]
    typer.echo(f"Next: lens render {store} --lens {last}")
