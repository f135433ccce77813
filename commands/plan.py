"""The command `lens plan`: the options of `lens capture`, and what they would take."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from attnlens.commands.capture import capture, options_of

if TYPE_CHECKING:
    from attnlens.capture.forecast.forecast import Forecast
    from attnlens.capture.forecast.many import ManyForecast

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    'lens plan -m smollm2-135m -p "Why is the sky blue?"\n\n'
    "lens plan -m meta-llama/Llama-3.1-8B-Instruct --quantize 8bit --prompt-file q.txt\n\n"
    'lens plan -m ./my-model --raw -p "2+2=" -n 1000 --residuals --json\n\n'
    "lens plan -m ./my-model --prompts questions.jsonl -o all.zarr"
)


def plan(**chosen: Any) -> None:
    """Say what lens capture with the same options would take: bytes, memory, refusals.

    From configuration and tokenizer alone: no weight is loaded, none is downloaded, nothing is written.
    With --prompts: totals, the largest capture's memory, and each prompt that would be refused.
    """
    from attnlens.capture.extra import require_capture_extra
    from attnlens.console import open_progress

    require_capture_extra()
    with open_progress(chosen["quiet"]) as progress:
        progress.stage("loading")
        from attnlens.capture.forecast.forecast import forecast
        from attnlens.capture.forecast.many import forecast_many

        options = options_of(chosen)
        if options.prompts is None:
            one = forecast(options, progress)
        else:
            many = forecast_many(options, progress)
    if options.prompts is None:
        _tell_one(one, chosen["json"])
    else:
        _tell_many(many, chosen["json"])


def _tell_one(found: Forecast, json: bool) -> None:
    from attnlens.console import to_json
    from attnlens.plan_page import print_page

    if json:
        typer.echo(to_json(found))
    else:
        print_page(found)


def _tell_many(found: ManyForecast, json: bool) -> None:
    """One line for each prompt that would be refused, and exit code 1 then, as lens capture has it."""
    from attnlens.console import one_line, to_json
    from attnlens.plan_page import print_many

    if json:
        typer.echo(to_json(found))
    else:
        print_many(found)
    for refused in found.refused:
        typer.echo(f"lens: {one_line(str(refused))}", err=True)
    if found.refused:
        raise typer.Exit(1)


# The same options, whatever capture has: typer reads them from the signature.
plan.__signature__ = inspect.signature(capture, eval_str=True)  # type: ignore[attr-defined]
plan.__annotations__ = get_type_hints(capture, include_extras=True)
