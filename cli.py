"""The command `lens`: its commands in the order of use, and the one place where an error becomes a line.

Nothing heavy is imported here, so that `lens --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from attnlens import __version__
from attnlens.commands import (
    capture,
    crop,
    demo,
    diff,
    export,
    import_,
    info,
    ls,
    merge,
    migrate,
    pack,
    plan,
    relens,
    render,
    unpack,
    verify,
    view,
)
from attnlens.schemas.errors import AttnlensError, Interrupted


class Commands(TyperGroup):
    """The group of commands. Turns Ctrl-C into an error of ours before typer swallows what it carries."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with _interrupts() as came:
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(str(interrupt) or "interrupted") from interrupt
        except Interrupted:
            raise
        except Exception as error:
            if came:
                # A library took the interrupt for an error of its own, as numpy does within a comparison.
                raise Interrupted("interrupted") from error
            raise


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C as ever; the list holds those that came."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield came
        return

    def answer(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, answer)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Notices(logging.Handler):
    """What is told while a command runs, one line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        from attnlens.console import one_line

        print(f"lens: {one_line(record.getMessage())}", file=sys.stderr)  # noqa: T201


def main() -> None:
    """Entry point: every error that a person can put right becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a token the terminal cannot show must not end the run
    logging.getLogger("attnlens").addHandler(Notices())
    try:
        try:
            app(prog_name="lens")
        except SystemExit as end:
            if end.code == Interrupted.exit_code:  # Ctrl-C outside a command, which typer ends without a word
                raise Interrupted("interrupted") from end
            raise
    except AttnlensError as error:
        said = error.on_command_line()
        if said != "interrupted":  # an import that Ctrl-C cut off is not begun again
            from attnlens.console import one_line

            said = one_line(said)
        print(f"lens: {said}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except OSError as error:  # what the system refuses to a command that does not say itself what it was about
        from attnlens.console import one_line

        what = "" if error.filename is None else f"{error.filename}: "
        print(f"lens: {one_line(f'{what}{error.strerror or error}')}", file=sys.stderr)  # noqa: T201
        sys.exit(AttnlensError.exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnlens {__version__}")
        raise typer.Exit


@app.callback(
    help="See what a causal language model looks at, and what it is about to say, at every layer.\n\n"
    "[bold]capture[/bold] runs the model once, where the GPU is, and writes everything to a store. "
    "[bold]render[/bold] draws pictures from the store on any machine, without the model and without torch.",
    epilog="[bold]Start here[/bold]\n\nlens demo\n\nlens capture --help",
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    no_limits: Annotated[
        bool,
        typer.Option("--no-limits", help="Read stores beyond the usual limits, of people you trust."),
    ] = False,
) -> None:
    """Options of `lens` itself."""
    if no_limits:
        os.environ["ATTNLENS_NO_LIMITS"] = "1"


app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=capture.EXAMPLES)(capture.capture)
app.command(epilog=plan.EXAMPLES)(plan.plan)
app.command(epilog=relens.EXAMPLES)(relens.relens)
app.command(epilog=render.EXAMPLES)(render.render)
app.command(epilog=view.EXAMPLES)(view.view)
app.command(epilog=diff.EXAMPLES)(diff.diff)
app.command(epilog=export.EXAMPLES)(export.export)
app.command("import", epilog=import_.EXAMPLES)(import_.import_)
app.command()(info.info)
app.command()(verify.verify)
app.command(epilog=crop.EXAMPLES)(crop.crop)
app.command()(ls.ls)
app.command(epilog=merge.EXAMPLES)(merge.merge)
app.command(epilog=migrate.EXAMPLES)(migrate.migrate)
app.command(epilog=pack.EXAMPLES)(pack.pack)
app.command(epilog=unpack.EXAMPLES)(unpack.unpack)
