"""The command `lens ls`."""

from __future__ import annotations

import typer

from attnlens.commands.options import Json, Store

MODEL, WIDTH, MARK = 18, 34, 22
"""Columns of a model's name, of a prompt, and of what tells a run from others of its model, where there is such."""


def ls(store: Store, json: Json = False) -> None:
    """List the captures of a store, one a line: number, status, tokens, model, its label or what changed it, prompt."""
    from attnlens.console import one_line, to_json
    from attnlens.store.listing import listing

    found = listing(store)
    if json:
        typer.echo(to_json({"captures": found}))
        return
    marks = [line.label or line.changes.strip(" ,") for line in found]
    mark_width = min(MARK, max(map(len, marks), default=0))
    width = WIDTH - (mark_width + 2 if mark_width else 0)
    for line, mark in zip(found, marks, strict=True):
        tokens = f"{line.n_prompt}+{line.n_token - line.n_prompt}"
        between = f"{_cut(mark, mark_width):<{mark_width}}  " if mark_width else ""
        model, prompt = one_line(line.model)[:MODEL], _cut(one_line(line.prompt), width)
        typer.echo(f"{line.id}  {line.status:<8}  {tokens:>9}  {model:<{MODEL}}  {between}{prompt}")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]} …"
