"""Child processes that are forks of one that has torch imported: a start costs milliseconds instead of seconds.

They are processes as any others, with a number of their own, that can be killed. The first start makes the one they are
forked from, which ends with the tests.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ABOUT = 1 << 20
"""Bytes of a request that are read at most."""


class Forked:
    """A child that runs Python code, with what a test needs of `subprocess.Popen`."""

    def __init__(self, code: str, *arguments: object, cwd: Path | None = None, **environment: str) -> None:
        self._origin = _origin()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        out, written = os.pipe()
        request = {
            "code": code,
            "arguments": [str(one) for one in arguments],
            "folder": str(cwd or Path.cwd()),
            "environment": {**os.environ, **environment},
        }
        self.pid: int = self._origin.ask(request, [written, self._errors.fileno()])
        os.close(written)
        self.stdout = os.fdopen(out)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._origin.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:  # else the number may be another's by now
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """What it writes until it ends: stdout from here on, and all of stderr."""
        late = threading.Timer(timeout, os.kill, [self.pid, signal.SIGKILL])
        late.start()
        try:
            said = self.stdout.read()
        finally:
            late.cancel()
        self.wait()
        self._errors.seek(0)
        errors = self._errors.read().decode(errors="replace")
        self._close()
        return said, errors

    def _close(self) -> None:
        self.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.send_signal(signal.SIGKILL)
        self.wait()
        self._close()


class _Origin:
    """The process that children are forked from, asked through a socket."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import sys, forks; forks.serve(int(sys.argv[1]))", str(there.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        there.close()
        atexit.register(self.close)

    def ask(self, request: dict[str, Any], files: list[int] | None = None) -> Any:
        socket.send_fds(self._socket, [json.dumps(request).encode()], files or [])
        return json.loads(self._socket.recv(ABOUT) or "null")

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def _origin() -> _Origin:
    return _Origin()


def serve(number: int) -> None:
    """What the origin does: import, then fork whenever it is asked."""
    import torch

    import batch_runs  # noqa: F401 - the GPU stage, which children find imported

    torch.set_num_threads(1)
    here = socket.socket(fileno=number)
    while True:
        data, files, *_ = socket.recv_fds(here, ABOUT, 2)
        if not data:
            return
        request = json.loads(data)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            here.send(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode())
        elif child := os.fork():
            for file in files:
                os.close(file)
            here.send(json.dumps(child).encode())
        else:
            here.close()
            _become(request, files)
            return


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Run the code as `python -c` would; the process ends as any Python does once this returns."""
    for file, target in zip(files, (1, 2), strict=True):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["-c", *request["arguments"]]
    exec(compile(request["code"], "<child>", "exec"), {"__name__": "__main__"})
