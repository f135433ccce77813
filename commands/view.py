"""The command `lens view`."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "lens view run.zarr\n\n"
    "lens view run.zarr other.zarr\n\n"
    "lens view run.zarr --no-open --port 8600        (then, on your laptop: ssh -L 9000:localhost:8600 HOST)\n\n"
    "lens view run.zarr --no-open --allow-host hub.example.org        (behind a proxy, such as Jupyter's)"
)


def view(
    stores: Annotated[list[str], typer.Argument(metavar="STORE", help="One store, or several to compare.")],
    capture: Annotated[
        str | None, typer.Option("--capture", metavar="ID", help="Which capture to begin with.", show_default="first")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to serve on.", show_default="a free one")
    ] = 0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Answer to this host name, too: that of a proxy. Repeatable. Names of this machine (localhost) "
            "always work, on any port.",
            show_default="none",
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = True,
) -> None:
    """Look at a store in the browser: every cell, head and token. Serves to this machine only, until Ctrl-C."""
    from attnlens.render.viewer.serve import serve

    serve(stores, capture=capture, port=port, hosts=allow_host or (), open_browser=open_browser, say=typer.echo)
