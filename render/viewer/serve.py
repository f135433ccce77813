"""`lens view`: from paths to a page in the browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import PurePath
from urllib.parse import quote

from attnlens.render.viewer.server import ViewServer
from attnlens.store.places import Place, absolute
from attnlens.store.reader import open_store


def open_server(paths: Sequence[str | PathLike[str]], port: int = 0) -> ViewServer:
    """A server for these stores, not yet running.

    Raises:
        StoreError: a path is not a store.
        InputError: the port is taken.
    """
    names: list[str] = []
    places: list[Place] = []
    for path in paths:
        places.append(open_store(path).place)  # says in words what is wrong with it
        name = PurePath(absolute(path)).name
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return ViewServer(list(zip(names, places, strict=True)), port)


def serve(
    paths: Sequence[str | PathLike[str]],
    *,
    capture: str | None = None,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Serve stores until Ctrl-C, and open the browser.

    Raises:
        StoreError: a path is not a store.
        AbsentError: the first has no such capture.
        InputError: the port is taken.
    """
    server = open_server(paths, port)
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
