"""A served store in a real browser, for tests of the viewer. Skipped where there is no Chromium."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attnlens.render.viewer.assets import FOLDER
from attnlens.render.viewer.serve import open_server
from attnlens.render.viewer.server import ViewServer
from browser import chromium as chromium

READY = """async () => {
  for (let i = 0; i < 500 && !window.attnlens; i++) await new Promise((done) => setTimeout(done, 10));
  await attnlens.ready;
  await attnlens.side?.lens.refined.catch(() => {});  // the page tells
  await attnlens.ready;
}"""


@contextmanager
def serving(*stores: Path | str, hosts: Sequence[str] = ()) -> Iterator[ViewServer]:
    """The server of `lens view`, running."""
    server = open_server(stores, hosts=hosts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Static(SimpleHTTPRequestHandler):
    """Any web server: files below a folder, ranges or not, nothing that is ours."""

    ranges = True
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.parent.name == "viewer":
            path = FOLDER / path.name
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        part, total = data, len(data)
        if wanted and self.ranges:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            low = max(0, total - int(stop)) if not start else int(start)
            part = data[low : int(stop) + 1 if start and stop else total]
        self.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            self.send_header("Content-Range", f"bytes {low}-{low + len(part) - 1}/{total}")
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@contextmanager
def static_host(folder: Path, ranges: bool) -> Iterator[str]:
    """A server of `folder`, and of the page under /viewer/: its address."""
    handler = type("Handler", (_Static,), {"ranges": ranges})
    with running(partial(handler, directory=str(folder))) as (home, _):
        yield home


@contextmanager
def running(handler: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server on this machine: its address, and what ends it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", end
    finally:
        end()


class Page:
    """One page of the viewer: what it asked for, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, *, width: int = 1280, height: int = 800, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.wrong: list[str] = []
        home = urlsplit(url).netloc
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self._asked(request.url, home))
        self.page.goto(url)
        self.page.evaluate(READY)

    def _asked(self, url: str, home: str) -> None:
        parts = urlsplit(url)
        self.requests.append(parts.path)
        if parts.scheme not in ("data", "blob") and parts.netloc != home:
            self.wrong.append(f"left the machine: {url}")

    def set(self, **state: Any) -> None:
        """Change the state of the page and wait until it is drawn."""
        self.page.evaluate(
            "(changes) => attnlens.set(changes)", {key.rstrip("_"): value for key, value in state.items()}
        )

    def js(self, code: str, argument: Any = None) -> Any:
        return self.page.evaluate(code, argument)

    def hover(self, row: int, column: int) -> dict[str, str]:
        """Point at a cell, and read what floats over it: name → text."""
        place = self.js(
            """([row, column]) => {
              const { board } = attnlens.view;
              board.reveal(row, column);
              const box = board.host.getBoundingClientRect(), cell = board.rect(row, column);
              return [box.x + cell.x + cell.width / 2, box.y + cell.y + cell.height / 2];
            }""",
            [row, column],
        )
        self.page.mouse.move(place[0], place[1])
        for _ in range(200):
            if "entropy" in (shown := self.tip()) or "query" in shown:
                return shown
            self.page.wait_for_timeout(10)
        return shown

    def tip(self) -> dict[str, str]:
        return dict(
            self.js(
                """() => [...document.querySelectorAll(".tip dt")].map((name) => {
                  const value = name.nextElementSibling, items = [...value.querySelectorAll("li")];
                  return [name.textContent, items.map((item) => item.textContent).join("\\n") || value.textContent];
                })"""
            )
        )

    def close(self) -> None:
        self.context.close()


@contextmanager
def viewing(*stores: Path, state: str = "", **options: Any) -> Iterator[Page]:
    """A page on these stores."""
    with serving(*stores) as server, chromium() as browser:
        page = Page(browser, server.url + state, **options)
        yield page
        page.close()
