"""`lens render`: a store in, a folder of pictures out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import attnlens
from attnlens.progress import Progress, Silent
from attnlens.render.formats import Format, format_named
from attnlens.render.gallery.index import write_contents, write_index
from attnlens.render.look.colour import Colours
from attnlens.render.look.layout import lay_out
from attnlens.render.options import RenderOptions
from attnlens.render.recipes.recipe import of_run
from attnlens.render.run import files, workers
from attnlens.render.run.helpers import cores
from attnlens.render.run.jobs import Job, Outcome
from attnlens.render.run.products import names
from attnlens.render.run.whole import is_there
from attnlens.render.views.open import open_view
from attnlens.render.views.view import View
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.places import file_time
from attnlens.store.places.fetch import traffic

if TYPE_CHECKING:
    from attnlens.store.reader import Capture, Store

Engine = Callable[[Iterable[Job], int], Iterable[Outcome]]
"""Draws jobs somewhere; the number says how many pictures they are. Outcomes may come in any order."""


class Opened:
    """Captures of a store with what is drawn of them; only the last few stay open."""

    def __init__(self, store: Store, options: RenderOptions) -> None:
        self._store, self._options = store, options
        self._kept: dict[str, tuple[Capture, View]] = {}

    def __call__(self, name: str) -> tuple[Capture, View]:
        """A capture by name, opened if it is not open."""
        if name not in self._kept:
            while len(self._kept) >= _OPEN:
                self._kept.pop(next(iter(self._kept)))
            capture = self._store.open(name)
            self._kept[name] = capture, open_view(capture, self._options)
        return self._kept[name]


_OPEN = 4
"""Captures of plans that stay open."""


@dataclass(frozen=True, kw_only=True)
class RenderReport:
    """What was drawn: number of pictures, where, how long it took in seconds.

    `kept` counts the pictures that were there already and were not drawn again. `missing_characters` counts the
    different characters that no font here has and that were drawn as code points. `requests`, `fetched_bytes`: what was
    taken from a network. `notes` are lines a person should
    read: captures left out, columns that no window shows.
    """

    count: int
    kept: int
    folder: Path
    seconds: float
    missing_characters: int
    notes: tuple[str, ...]
    requests: int = 0
    fetched_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The pictures of one capture, checked and ready to draw.

    It holds names only: the capture is opened when it is asked for, and the last few stay open, so that a store of
    thousands takes no more memory than one of a few.
    """

    opened: Opened
    name: str
    folder: Path
    options: RenderOptions

    @property
    def capture(self) -> Capture:
        """The capture, open."""
        return self.opened(self.name)[0]

    @property
    def view(self) -> View:
        """What is drawn of it."""
        return self.opened(self.name)[1]

    def count(self) -> int:
        """Number of files."""
        view = self.view
        return sum(len(names(view, unit, self.options)) for unit in view.units)

    def jobs(
        self, store: str | PathLike[str], left: Callable[[Plan, tuple[str, ...]], tuple[str, ...] | None]
    ) -> Iterator[Job]:
        """A job for every unit; `left` says which of its files are left to draw, None for all."""
        view = self.view
        for unit in view.units:
            stems = left(self, names(view, unit, self.options))
            if stems is None or stems:
                yield Job(
                    store=str(store),
                    capture=self.name,
                    unit=unit,
                    stems=stems,
                    folder=str(self.folder),
                    options=self.options,
                )


def render(
    store_path: str | PathLike[str],
    out_dir: str | PathLike[str],
    *,
    options: RenderOptions | None = None,
    progress: Progress | None = None,
    n_workers: int | None = 1,
    resume: bool = False,
    engine: Engine | None = None,
    gallery: bool = False,
) -> RenderReport:
    """Draw windowed pictures of a store into `out_dir`, which is made if need be.

    Files are `attn_{i}_{j}.png` for generated token i and window j, `attn_p{q}_{j}.png` for prompt position q, without
    `_{j}` where one picture holds all columns. Everything is checked before the first picture is drawn. A file appears
    whole under its name or not at all. The bytes do not depend on how many processes draw.

    Args:
        store_path: a store.
        out_dir: a folder.
        options: what is drawn.
        progress: where work is reported.
        n_workers: processes that draw; None for one a processor.
        resume: leave alone what is there, whole, and of this very run.
        engine: draws in place of the processes here.
        gallery: write an `index.html` beside the pictures.

    Raises:
        InputError: an option cannot be used, or the folder cannot be written.
        AbsentError: what was asked for was never captured.
        StoreError: `store_path` is not a store, or is damaged.
    """
    began, at_first = time.monotonic(), (traffic.requests, traffic.bytes)
    options, progress = options or RenderOptions(), progress or Silent()
    if n_workers is not None and n_workers < 1:
        raise InputError(f"--workers {n_workers}: at least 1 process has to draw")
    form = format_named(options.format)
    plans, notes = ready_plans(store_path, out_dir, options)
    total = sum(plan.count() for plan in plans)
    progress.stage("pictures", total, "pictures")
    kept = _Kept(store_path, form, progress) if resume else None
    work = (job for plan in plans for job in plan.jobs(store_path, kept.left if kept else _all))
    drawn = engine or _here(n_workers or cores())
    count, missing = 0, frozenset[str]()
    requests, fetched = traffic.requests - at_first[0], traffic.bytes - at_first[1]
    for outcome in drawn(work, total):
        count += outcome.count
        missing |= outcome.missing
        requests, fetched = requests + outcome.fetched[0], fetched + outcome.fetched[1]
        progress.advance(outcome.count)
    if gallery:
        _write_gallery(Path(out_dir), plans)
    progress.end()
    return RenderReport(
        count=count,
        kept=kept.count if kept else 0,
        folder=Path(out_dir),
        seconds=time.monotonic() - began,
        missing_characters=len(missing),
        notes=notes,
        requests=requests,
        fetched_bytes=fetched,
    )


def _write_gallery(folder: Path, plans: list[Plan]) -> None:
    for plan in plans:
        write_index(plan.folder, plan.capture, plan.view, plan.options)
    if plans[0].folder != folder:
        write_contents(folder, (plan.capture for plan in plans))


def _here(n_workers: int) -> Engine:
    def engine(jobs: Iterable[Job], count: int) -> Iterable[Outcome]:
        return workers.run(jobs, n_workers, count)

    return engine


def _all(plan: Plan, stems: tuple[str, ...]) -> tuple[str, ...] | None:
    return None


class _Kept:
    """Pictures that are there already."""

    def __init__(self, store: str | PathLike[str], form: Format, progress: Progress) -> None:
        self._store, self._form, self._progress = store, form, progress
        self.count = 0

    def left(self, plan: Plan, stems: tuple[str, ...]) -> tuple[str, ...]:
        """Which of the files are left to draw."""
        run = of_run(plan.capture, plan.options)
        since = file_time(self._store, f"{plan.capture.id}/zarr.json")
        left = tuple(
            stem for stem in stems if not is_there(plan.folder / f"{stem}{self._form.SUFFIX}", self._form, run, since)
        )
        self.count += len(stems) - len(left)
        self._progress.advance(len(stems) - len(left))
        return left


def ready_plans(
    store_path: str | PathLike[str], out_dir: str | PathLike[str], options: RenderOptions
) -> tuple[list[Plan], tuple[str, ...]]:
    """`make_plans` of a store, with every option checked before the first folder is made."""
    plans, notes = make_plans(attnlens.open(store_path), Path(out_dir), options)
    for place in (*(plan.folder for plan in plans), Path(out_dir)):
        files.prepare(place)
    return plans, notes


def make_plans(store: Store, folder: Path, options: RenderOptions) -> tuple[list[Plan], tuple[str, ...]]:
    """One plan a capture, and notes. Of several captures those that hold nothing to draw are left out, with a note."""
    ids = _ids(store, options.capture)
    notes: list[str] = []
    plans: list[Plan] = []
    opened, last = Opened(store, options), 0
    for name in ids:
        try:
            plan = Plan(opened=opened, name=name, folder=folder if len(ids) == 1 else folder / name, options=options)
            Colours(options.cmap)
            lay_out(*plan.view.shape, options.dpi)
            last = max(last, plan.view.units[-1])
            plans.append(plan)
        except AbsentError as error:
            if len(ids) == 1:
                raise
            notes.append(f"left out: {error}")
    if not plans:
        raise AbsentError(f"none of the {len(ids)} captures holds anything to draw; {notes[0]}")
    if options.step > options.window and last >= options.window:
        notes.append(f"--step {options.step} is larger than --window {options.window}: some columns are in no picture")
    return plans, tuple(notes)


def _ids(store: Store, wanted: str | None) -> Sequence[str]:
    """Names of the captures to draw; one is named by its own name or by the id of its prompt."""
    if wanted is not None:
        return (store.find(wanted),)
    if not store.ids:
        raise AbsentError("the store holds no capture")
    return store.ids
