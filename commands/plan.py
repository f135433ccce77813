"""The command `lens plan`: the options of `lens capture`, and what they would take."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import typer

from attnlens.commands.capture import capture, options_of

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    'lens plan -m smollm2-135m -p "Why is the sky blue?"\n\n'
    "lens plan -m meta-llama/Llama-3.1-8B-Instruct --quantize 8bit --prompt-file q.txt\n\n"
    'lens plan -m ./my-model --raw -p "2+2=" -n 1000 --residuals --json'
)


def plan(**chosen: Any) -> None:
    """Say what lens capture with the same options would take: bytes, memory, refusals.

    From configuration and tokenizer alone: no weight is loaded, none is downloaded, nothing is written.
    """
    from attnlens.capture.extra import require_capture_extra
    from attnlens.console import open_progress, to_json

    require_capture_extra()
    with open_progress(chosen["quiet"]) as progress:
        progress.stage("loading")
        from attnlens.capture.forecast.forecast import forecast

        found = forecast(options_of(chosen), progress)
    if chosen["json"]:
        typer.echo(to_json(found))
        return
    from attnlens.plan_page import print_page

    print_page(found)


# The same options, whatever capture has: typer reads them from the signature.
plan.__signature__ = inspect.signature(capture, eval_str=True)  # type: ignore[attr-defined]
plan.__annotations__ = get_type_hints(capture, include_extras=True)
