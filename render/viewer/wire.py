"""HTTP/1.1 on the loopback interface. h11 says what is a request; how many, and how long they may take, is said here.

Nobody who connects is trusted. A request must be there whole in a few seconds, its head and body are bounded, each gets
one answer, and after one whose body was not read the connection is closed. When all places are taken, the connection
that has been of no use for longest gives way, so that slow ones cannot lock the page out.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11

CONNECTIONS = 64
"""Connections, and so threads, at a time. A browser opens six to a host."""
IDLE_SECONDS = 60.0
"""How long a connection may wait for its next request."""
REQUEST_SECONDS = 10.0
"""How long a request may take from its first byte to its last."""
SEND_SECONDS = 30.0
"""How long one piece of an answer may take to be taken."""
HEAD_BYTES = 16384
PIECE = 1 << 16


class Refusal(Exception):  # noqa: N818 - an answer, not an error
    """A request that is answered with a status and one line."""

    def __init__(self, status: HTTPStatus, line: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = status, line, headers or {}


@dataclass(frozen=True)
class Request:
    """One request. `body` reads its body, of at most so many bytes; Refusal if there are more."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: Callable[[int], bytes]

    def header(self, name: str) -> str | None:
        """A header's value, those of several joined by commas; None if there is none."""
        found = [value for key, value in self.headers if key == name.lower()]
        return ", ".join(found) if found else None


@dataclass(frozen=True)
class Answer:
    """One answer: `pieces` together have `size` bytes."""

    status: HTTPStatus
    pieces: Iterable[bytes] = ()
    size: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Listener(socketserver.TCPServer):
    """Answers requests with what `answer` gives for them.

    Raises:
        OSError: the port is taken.
        OverflowError: there is no such port.
    """

    allow_reuse_address = True
    request_queue_size = CONNECTIONS
    connections = CONNECTIONS

    def __init__(self, port: int, answer: Callable[[Request], Answer], common: dict[str, str]) -> None:
        """`common`: headers of every answer."""
        self._answer, self._common = answer, common
        self._room = threading.BoundedSemaphore(self.connections)
        self._used: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), socketserver.BaseRequestHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a conversation in a thread of its own, when there is room for one."""
        if not self._room.acquire(blocking=False):
            self._make_room()
            if not self._room.acquire(timeout=1.0):
                self.shutdown_request(request)
                return
        self.touch(request)
        threading.Thread(target=self._converse, args=(request,), name="attnlens-view", daemon=True).start()

    def touch(self, connection: socket.socket) -> None:
        """Note that a connection was of use just now."""
        with self._lock:
            self._used[connection] = time.monotonic()

    def _make_room(self) -> None:
        """End the connection that was of no use for longest. Its thread notices and leaves."""
        with self._lock:
            oldest = min(self._used, key=self._used.__getitem__, default=None)
            if oldest is not None:
                del self._used[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)

    def _converse(self, connection: socket.socket) -> None:
        try:
            with suppress(
                OSError, h11.LocalProtocolError
            ):  # hung up, too slow, or a file changed: nobody is left to be told
                Conversation(self, connection, self._answer, self._common).run()
        finally:
            with self._lock:
                self._used.pop(connection, None)
            with suppress(OSError):
                connection.close()
            self._room.release()


class Conversation:
    """One connection: requests one after another, each answered once."""

    def __init__(
        self,
        listener: Listener,
        connection: socket.socket,
        answer: Callable[[Request], Answer],
        common: dict[str, str],
    ) -> None:
        self._listener, self._socket, self._answer, self._common = listener, connection, answer, common
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._deadline = 0.0
        self._announced = 0

    def run(self) -> None:
        """Answer until one side has enough. OSError if the client hangs up or takes too long."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self._exchange():
            self._http.start_next_cycle()
            self._listener.touch(self._socket)
        self._leave()

    def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        head: h11.Request | None = None
        try:
            self._deadline = time.monotonic() + (REQUEST_SECONDS if self._http.trailing_data[0] else IDLE_SECONDS)
            event = self._event()
            if not isinstance(event, h11.Request):
                return False
            head = event
            answer = self._answer(self._request(head))
        except Refusal as refusal:
            answer = refused(refusal)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            answer = refused(Refusal(status, f"this is no request that can be answered: {error}"))
        except TimeoutError:
            if head is None and not self._http.trailing_data[0]:
                return False  # nothing was asked
            answer = refused(Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request took too long to arrive"))
        if self._http.their_state is h11.SEND_BODY and not self._http.they_are_waiting_for_100_continue:
            with suppress(h11.RemoteProtocolError, BlockingIOError):
                self._end_of_body()
        self._send(answer, head)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _end_of_body(self) -> None:
        """Take the end of a request without a body, which h11 keeps for an event of its own; waits for nothing."""
        if self._http.next_event() is h11.NEED_DATA:
            raise BlockingIOError

    def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
            if time.monotonic() >= self._deadline:
                raise TimeoutError
            fresh = not self._http.trailing_data[0] and self._http.their_state is h11.IDLE
            self._http.receive_data(self._socket.recv(PIECE))
            if fresh:
                self._deadline = min(self._deadline, time.monotonic() + REQUEST_SECONDS)

    def _request(self, head: h11.Request) -> Request:
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
        self._announced = next((int(value) for name, value in headers if name == "content-length"), 0)
        return Request(head.method.decode("latin-1"), head.target.decode("latin-1"), headers, self._body)

    def _body(self, most: int) -> bytes:
        if self._announced > most:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {most} bytes")
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self._push(self._http.send(go_on) or b"")
        found = bytearray()
        while isinstance(event := self._event(), h11.Data):
            found += event.data
            if len(found) > most:
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {most} bytes")
        return bytes(found)

    def _send(self, answer: Answer, head: h11.Request | None) -> None:
        """Status, headers and bytes. Whatever fails from here on ends the connection: there is no second answer."""
        headers = {**self._common, **answer.headers, "Content-Length": str(answer.size)}
        if self._http.their_state is not h11.DONE:
            headers["Connection"] = "close"
        listed = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        response = h11.Response(status_code=answer.status, reason=answer.status.phrase.encode(), headers=listed)
        waiting = self._http.send(response) or b""
        if (head is None or head.method != b"HEAD") and answer.status is not HTTPStatus.NOT_MODIFIED:
            for piece in answer.pieces:
                waiting += self._http.send(h11.Data(data=piece)) or b""
                if len(waiting) >= PIECE:
                    self._push(waiting)
                    waiting = b""
        self._push(waiting + (self._http.send(h11.EndOfMessage()) or b""))

    def _push(self, data: bytes) -> None:
        self._socket.settimeout(SEND_SECONDS)
        for start in range(0, len(data), PIECE):
            self._socket.sendall(data[start : start + PIECE])
            self._listener.touch(self._socket)

    def _leave(self) -> None:
        """Close so that the answer arrives: what the client still sends is read for a second and thrown away."""
        self._socket.shutdown(socket.SHUT_WR)
        until = time.monotonic() + 1.0
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            if not self._socket.recv(PIECE):
                return


def refused(refusal: Refusal) -> Answer:
    """The answer to a request that is refused."""
    line = f"{' '.join(refusal.line.split())}\n".encode()
    headers = {"Content-Type": "text/plain; charset=utf-8", **refusal.headers}
    return Answer(refusal.status, (line,), len(line), headers)


def pieces_of(data: bytes) -> Iterator[bytes]:
    """Bytes as the pieces of an answer."""
    yield data
