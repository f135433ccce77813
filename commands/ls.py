"""The command `lens ls`."""

from __future__ import annotations

import typer

from attnlens.commands.options import Json, Store

WIDTH = 34


def ls(store: Store, json: Json = False) -> None:
    """List the captures of a store, one a line: number, status, tokens, model, prompt."""
    from attnlens.console import one_line, to_json
    from attnlens.store.listing import listing

    found = listing(store)
    if json:
        typer.echo(to_json({"captures": found}))
        return
    for line in found:
        text = one_line(line.prompt)
        shown = text if len(text) <= WIDTH else f"{text[: WIDTH - 2]} …"
        tokens = f"{line.n_prompt}+{line.n_token - line.n_prompt}"
        typer.echo(f"{line.id}  {line.status:<8}  {tokens:>9}  {one_line(line.model)[:18]:<18}  {shown}")
