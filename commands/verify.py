"""The command `lens verify`."""

from __future__ import annotations

import typer

from attnlens.commands.options import Json, Quiet, Store


def verify(store: Store, quiet: Quiet = False, json: Json = False) -> None:
    """Check a store: format, checksums, ranges, causality, sums of rows, order of the lens. Needs no model."""
    from attnlens.commands.lines import say_notes
    from attnlens.console import one_line, open_progress, to_json
    from attnlens.store.verify import verify as check

    with open_progress(quiet) as progress:
        report = check(store, progress=progress)
    if json:
        typer.echo(to_json(report))
    elif report.passed:
        typer.echo("ok: " + ", ".join(f"{count} {what}" for what, count in report.checked.items()))
    else:
        for problem in report.problems:
            typer.echo(one_line(str(problem)))
    if not json:
        say_notes(map(str, report.notes))
    raise typer.Exit(0 if report.passed else 1)
