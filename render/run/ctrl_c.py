"""Ctrl-C at moments that cannot bear it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Signals are not masked: another thread could still receive one, and Python would answer it in the main thread.


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C inside takes effect at the end."""
    answer = _answer()
    if answer is None:
        yield
        return
    held_back = False

    def hold(_number: int, _frame: FrameType | None) -> None:
        nonlocal held_back
        held_back = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, answer)
    if held_back:
        answer(signal.SIGINT, None)


@contextmanager
def noticed() -> Iterator[Callable[[], None]]:
    """Ctrl-C inside interrupts as ever; what is yielded raises it again where a library swallowed it.

    numpy does: to it an interrupted comparison is an impossible one, and it goes on or raises a TypeError.
    """
    answer = _answer()
    if answer is None:
        yield lambda: None
        return
    came = False

    def notice(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        answer(number, frame)

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, notice)
    try:
        yield check
        check()
    except Exception:
        check()
        raise
    finally:
        signal.signal(signal.SIGINT, answer)


def _answer() -> Callable[[int, FrameType | None], object] | None:
    """What Ctrl-C does now; None where it does nothing here, as in a thread."""
    found = signal.getsignal(signal.SIGINT)
    return found if callable(found) and threading.current_thread() is threading.main_thread() else None
