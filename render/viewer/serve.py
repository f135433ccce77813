"""`lens view`: from paths to a page in the browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import PurePath
from urllib.parse import quote

from attnlens.render.viewer.served import Served
from attnlens.render.viewer.server import ViewServer
from attnlens.store.places import absolute
from attnlens.store.reader import open_store


def open_server(paths: Sequence[str | PathLike[str]], port: int = 0, hosts: Sequence[str] = ()) -> ViewServer:
    """A server for these stores, not yet running.

    Raises:
        StoreError: a path is not a store.
        InputError: the port is taken, or one of `hosts` is no name of a host.
    """
    stores: list[Served] = []
    for path in paths:
        name, taken = PurePath(absolute(path)).name, [store.name for store in stores]
        stores.append(Served(path, name if name not in taken else f"{name} ({len(taken) + 1})"))
    return ViewServer(stores, port, hosts)


def serve(
    paths: Sequence[str | PathLike[str]],
    *,
    capture: str | None = None,
    port: int = 0,
    hosts: Sequence[str] = (),
    open_browser: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Serve stores until Ctrl-C, and open the browser.

    Raises:
        StoreError: a path is not a store.
        AbsentError: the first has no such capture.
        InputError: the port is taken, or one of `hosts` is no name of a host.
    """
    server = open_server(paths, port, hosts)
    if capture is not None:
        open_store(paths[0])[capture]
    url = server.url + ("" if capture is None else f"#capture={quote(capture)}")
    with server:
        say(f"{url}\nserving to this machine only; Ctrl-C ends it")
        if open_browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
