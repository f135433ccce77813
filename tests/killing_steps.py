"""One command in a fork of this process, killed before one of its steps or after some time."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnlens.store import exchange

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "fcntl.flock"}
MOVES = {"os.rename", "exchange"}


class _Steps:
    """Counts what changes the file system below a folder, and dies before the step that it was told."""

    def __init__(self, root: str, last: int | None) -> None:
        self._root, self._last = root, last
        self.moves = bytearray()
        """For each step, whether something gets its name."""
        sys.addaudithook(self._watch)
        before = exchange._exchange

        def exchanged(one: Path, other: Path) -> bool:
            self._step("exchange")
            return before(one, other)

        exchange._exchange = exchanged

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if not writes and event not in CHANGES:
            return
        below = event in ("os.remove", "os.rmdir") and args[1] != -1  # a name in a folder that is open
        if below or self._root in str(args[0]) or event == "fcntl.flock":
            self._step(event)

    def _step(self, event: str) -> None:
        if len(self.moves) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.moves.append(event in MOVES)


def _forked(run: Callable[[], object], root: Path, last: int | None, told: int) -> int:
    if child := os.fork():
        return child
    try:
        steps = _Steps(str(root), last)
        run()
        os.write(told, bytes(steps.moves[: 1 << 16]))
        os._exit(0)
    except Exception:  # noqa: BLE001  (told, whatever it is; this process ends here)
        traceback.print_exc()
    finally:
        os._exit(1)


def unkilled(run: Callable[[], object], root: Path) -> tuple[bytes, float]:
    """The steps of a command that is not killed, and how many seconds it takes."""
    back, told = os.pipe()
    os.set_blocking(told, False)
    started = time.monotonic()
    child = _forked(run, root, None, told)
    os.close(told)
    steps = b"".join(iter(lambda: os.read(back, 1 << 16), b""))
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the command failed although nobody killed it")
    return steps, time.monotonic() - started


def killed(run: Callable[[], object], root: Path, step: int | None, after: float) -> bool:
    """Run a command and kill it before a step, or if that is None after some seconds. False if it had ended by then."""
    sink = os.open(os.devnull, os.O_WRONLY)
    child = _forked(run, root, step, sink)
    os.close(sink)
    if step is None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL
