"""The work of drawing a comparison, pair by pair, and which of it is done already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from attnlens.progress import Progress
from attnlens.render.diff.view import DiffView
from attnlens.render.formats import format_named
from attnlens.render.run.jobs import Job
from attnlens.render.run.products import names
from attnlens.render.run.whole import is_there
from attnlens.store.places import file_time


class Kept:
    """Pictures of a comparison that are there already; `count` of them were found so far."""

    def __init__(self, view: DiffView, first: Job, progress: Progress) -> None:
        assert first.other is not None
        self._view, self._first, self._progress = view, first, progress
        self._form, self._run = format_named(first.options.format), view.recipe()
        # A capture that still grows is known by its beginning: pictures older than its last change are drawn again.
        self._since = max(file_time(one.store, f"{one.capture}/zarr.json") for one in (first, first.other))
        self.count = 0

    def left(self, unit: int) -> tuple[str, ...]:
        """Which of a pair's files are left to draw."""
        stems = names(self._view, unit, self._first.options)
        paths = {stem: Path(self._first.folder, f"{stem}{self._form.SUFFIX}") for stem in stems}
        left = tuple(stem for stem in stems if not is_there(paths[stem], self._form, self._run, self._since))
        self.count += len(stems) - len(left)
        self._progress.advance(len(stems) - len(left))
        return left


def job_of(first: Job, unit: int, kept: Kept | None) -> Job | None:
    """The job of one pair like `first`, None where nothing of it is left to draw."""
    stems = None if kept is None else kept.left(unit)
    return replace(first, unit=unit, stems=stems) if stems is None or stems else None
