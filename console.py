"""What a person sees: progress on stderr, and text made safe for a terminal. Rich lives here and in `cli` only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from time import monotonic as _now
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from attnlens.progress import Progress, Silent
from attnlens.schemas.plain_text import one_line, printable

__all__ = [
    "PlainProgress",
    "SharedProgress",
    "TerminalProgress",
    "human_bytes",
    "one_line",
    "open_progress",
    "printable",
    "rate",
    "to_json",
]

QUIET_SECONDS = 30.0
"""A long stage on something that is not a terminal says that it is alive this often."""

SHARED_SECONDS = 2.0
"""One of several processes says how far it is this often."""


def human_bytes(count: int) -> str:
    """`count` bytes as a person says it: `812 B`, `3.1 MiB`."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def to_json(report: object) -> str:
    """A report as one JSON object for a program to read: a dataclass, or what knows its own `to_json`."""
    return json.dumps(report, default=_plain, indent=2)


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    return dict(vars(value)) if is_dataclass(value) else str(value)


@contextmanager
def open_progress(
    quiet: bool = False, stream: TextIO | None = None, process: tuple[int, int] = (0, 1)
) -> Iterator[Progress]:
    """Progress for the terminal, plain lines for anything else, nothing if `quiet`. Errors leave a clean screen.

    `process`: number and count of processes that share a terminal. Several write whole lines that say whose they are.
    """
    stream = stream or sys.stderr
    if quiet:
        yield Silent()
    elif process[1] > 1:
        lines = SharedProgress(stream, *process)
        yield lines
        lines.end()
    elif stream.isatty():
        with TerminalProgress(Console(file=stream)) as progress:
            yield progress
            progress.end()
    else:
        plain = PlainProgress(stream)
        yield plain
        plain.end()


class PlainProgress:
    """One line where a stage begins, one where it ends, one now and then between. No control codes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._name: str | None = None

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin a stage, ending the one before; the name of the running stage only renews its total."""
        if name == self._name:
            self._unit = unit
            return
        self.end()
        self._name, self._unit, self._done, self._note = name, unit, 0, ""
        self._start = self._said = _now()
        self._say(f"{name} …" if total is None else f"{name} … {total} {unit}".rstrip())

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count, and say so if nothing was said for long."""
        self._done += amount
        self._note = note or self._note
        if _now() - self._said > QUIET_SECONDS:
            self._said = _now()
            self._say(f"{self._name}: {self._summary()} so far")

    def end(self) -> None:
        """Say what the running stage came to."""
        if self._name is not None:
            self._say(f"{self._name}: {self._summary()}")
        self._name = None

    def _summary(self) -> str:
        seconds = _now() - self._start
        parts = [f"{seconds:.1f} s"]
        if self._done and self._unit:
            parts = [
                f"{self._done} {self._unit} in {seconds:.1f} s",
                rate(self._done, seconds, self._unit),
            ]
        return ", ".join(parts + [self._note] * bool(self._note))

    def _say(self, line: str) -> None:
        print(printable(line), file=self._stream, flush=True)


class SharedProgress:
    """Progress of one of several processes: whole lines, each with the number of the process. Stages without a total
    (loading) are told by the first process only; a count is told at most every two seconds, with rate and time left.
    """

    def __init__(self, stream: TextIO, number: int, count: int) -> None:
        self._stream = stream
        self._label = f"[{number + 1}/{count}]"
        self._first = number == 0
        self._name: str | None = None
        self._said_done = -1

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin a stage, ending the one before."""
        if name == self._name:
            return
        self.end()
        self._name, self._total, self._unit, self._done, self._note = name, total, unit, 0, ""
        self._start = self._said = _now()
        self._said_done = 0
        if self._first or total is not None:
            self._say(name if total is None else f"{name}: {total} to do")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count, and say so now and then."""
        self._done += amount
        self._note = note
        if self._total is not None and _now() - self._said > SHARED_SECONDS:
            self._count()

    def end(self) -> None:
        """Say what a count came to."""
        if self._name is not None and self._total is not None and self._done != self._said_done:
            self._count()
        self._name = None

    def _count(self) -> None:
        self._said, self._said_done = _now(), self._done
        seconds = self._said - self._start
        parts = [f"{self._name}: {self._done}/{self._total}", f"{seconds:.0f} s"]
        if self._done and self._total is not None:
            parts.append(f"{rate(self._done, seconds, self._unit)}")
            left = (self._total - self._done) * seconds / self._done
            parts += [f"{left:.0f} s left"] if left >= 0.5 else []
        self._say(", ".join(parts + [self._note] * bool(self._note)))

    def _say(self, line: str) -> None:
        # One write, line break included, so that lines of several processes do not mix.
        self._stream.write(f"{self._label} {printable(line)}\n")
        self._stream.flush()


def rate(done: float, seconds: float, unit: str) -> str:
    """Units a second, or a minute where they are slow: `3.2 prompts/s`, `4.5 prompts/min`."""
    each = done / max(seconds, 1e-9)
    return f"{each:.1f} {unit}/s" if each >= 0.5 else f"{60 * each:.1f} {unit}/min"


class TerminalProgress:
    """One line a stage: bar, count, rate, time left, note."""

    def __init__(self, console: Console) -> None:
        self._name: str | None = None
        self._task: TaskID | None = None
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            _Count(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False, style="dim", table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            expand=True,
        )

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin a stage, ending the one before; the name of the running stage only renews its total."""
        if name == self._name and self._task is not None:
            self._bars.update(self._task, total=total, unit=unit)
            return
        self.end()
        self._name = name
        self._task = self._bars.add_task(printable(name), total=total, unit=unit, note="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count, and show `note` beside the bar."""
        if self._task is not None:
            self._bars.advance(self._task, amount)
            if note:
                self._bars.update(self._task, note=printable(note))

    def end(self) -> None:
        """Fill the bar of the running stage."""
        if self._task is not None:
            done = self._bars.tasks[-1].completed or 1
            self._bars.stop_task(self._task)
            self._bars.update(self._task, total=done, completed=done)
        self._name = self._task = None


class _Count(ProgressColumn):
    """Units done, of how many, and the rate over the whole stage."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        if not unit:
            return Text("")
        total = "" if task.total is None else f"/{task.total:.0f}"
        pace = f"  {rate(task.completed, task.elapsed, unit)}" if task.elapsed and task.completed else f" {unit}"
        return Text(f"{task.completed:.0f}{total}{pace}", style="progress.download")
