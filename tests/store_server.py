"""A web server on loopback that serves a folder, counts what it is asked, and answers badly if told to."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

FAULTS = ("error", "reset", "slow", "short")


@dataclass
class Served:
    """What a server does and did. `faults`: share of requests that are answered badly. `headers`: what it tells of a
    file.
    """

    folder: Path
    ranges: bool = True
    faults: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    slow_s: float = 3.0
    headers: Callable[[Path], dict[str, str]] = lambda path: {"ETag": f'"{path.stat().st_mtime_ns}"'}
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    log: list[tuple[str, str | None, int]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.log)


@contextmanager
def serve(served: Served) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = served.folder / unquote(self.path).lstrip("/")
            wanted = self.headers.get("Range")
            kind = served.chance.choice(served.kinds) if served.chance.random() < served.faults else None
            if kind is not None:
                served.failed.append(kind)
            if kind == "error":
                self.answer(served.chance.choice((500, 502, 503, 429)), b"not now")
                return
            if kind == "reset":
                self.reset()
                return
            if not path.is_file():
                self.answer(404, b"none")
                return
            data = path.read_bytes()
            size, code, extra = len(data), 200, dict(served.headers(path))
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "") if served.ranges else None
            if match:
                first, last = match[1], match[2]
                low = int(first) if first else max(0, size - int(last))
                high = min(size, int(last) + 1) if first and last else size
                data, code, extra["Content-Range"] = data[low:high], 206, f"bytes {low}-{high - 1}/{size}"
            served.log.append((self.path, wanted, len(data)))
            self.answer(code, data, extra, kind)

        def answer(self, code: int, data: bytes, extra: dict[str, str] | None = None, kind: str | None = None) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if kind is None:
                self.wfile.write(data)
                return
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if kind == "slow":
                time.sleep(served.slow_s)
            self.reset() if kind == "short" and served.chance.random() < 0.5 else self.finish_early()

        def finish_early(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def shutdown_request(self, request: object) -> None:
            with suppress(OSError):
                super().shutdown_request(request)  # type: ignore[arg-type]

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
