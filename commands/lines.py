"""Lines that several commands print."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from attnlens.render.recipes.again import AgainReport
    from attnlens.store.tools.pack import PackReport


def say_notes(notes: Iterable[str]) -> None:
    """What a person should know beside the outcome, a line each."""
    from attnlens.console import one_line

    for note in notes:
        typer.echo(f"note: {one_line(note)}", err=True)


def say_again(drawn: AgainReport, picture: Path, json: bool) -> None:
    """The outcome of a picture that was drawn again."""
    from attnlens.console import to_json

    same = "the same bytes as" if drawn.same else "not"
    typer.echo(to_json(drawn) if json else f"{drawn.path}: {same} {picture}")
    say_notes(drawn.notes)


def say_packed(made: PackReport, json: bool) -> None:
    """The outcome of packing or unpacking."""
    from attnlens.console import human_bytes, to_json

    typer.echo(to_json(made) if json else f"{made.path}: {made.files} files, {human_bytes(made.bytes)}")
