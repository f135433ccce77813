"""The command `lens info`."""

from __future__ import annotations

from typing import Annotated

import typer

from attnlens.commands.options import Json, Store


def info(
    store: Store,
    capture: Annotated[
        str | None, typer.Option("--capture", metavar="ID", help="One of many, by its name or its prompt's id.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a store holds: captures, prompts and answers, model, sizes, what is absent and why."""
    from attnlens.store.info import describe

    description = describe(store, capture)
    if json:
        from attnlens.console import to_json

        typer.echo(to_json(description))
        return
    from attnlens.info_page import print_page

    print_page(description)
