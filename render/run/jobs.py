"""The work of drawing, cut into pieces that any process can do: one job is one unit of a view with its pictures.

A job holds names and numbers only, so it travels to another process; what it takes to draw it (the open store, the
painter with its glyphs) is made where it is drawn and kept for the next job of the same kind. The bytes of a picture
depend on the job alone, never on who draws it or on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import attnlens
from attnlens.render.formats import format_named
from attnlens.render.options import RenderOptions
from attnlens.render.painter.painter import Painter
from attnlens.render.run import files
from attnlens.render.run.products import products
from attnlens.render.scene import Scene
from attnlens.render.views.open import open_view
from attnlens.render.views.view import View
from attnlens.store.places import file_version
from attnlens.store.places.fetch import traffic


@dataclass(frozen=True, kw_only=True)
class Other:
    """The capture that a job's capture is compared with, how their tokens are paired, and the end of the scale."""

    store: str
    capture: str
    align: str
    limit: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures of one unit (a query, or a block of a map's rows), and the folder they go to. `stems` None: all.

    `other`: what it is compared with in a picture of `lens diff`; a unit is then a pair of queries.
    """

    store: str
    capture: str
    unit: int
    stems: tuple[str, ...] | None
    folder: str
    options: RenderOptions = field(repr=False)
    other: Other | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: number of files written, the characters that no font here could draw, and what it
    took from a network: requests, bytes.
    """

    count: int
    missing: frozenset[str]
    fetched: tuple[int, int] = (0, 0)


def draw(job: Job) -> Iterator[tuple[str, bytes]]:
    """The files of a job as (name without its ending, bytes)."""
    painter = painter_of(job.options)
    for product in products(_view(job), job.unit, job.options, _wanted(job)):
        yield product.name, product.encode(painter)


def write(job: Job, check: Callable[[], None] = lambda: None) -> Outcome:
    """Draw a job into its folder, file by file, each whole or not at all.

    `check` is called before a file is written, and raises where what was drawn may be wrong.
    """
    folder, suffix, count = Path(job.folder), format_named(job.options.format).SUFFIX, 0
    before = traffic.requests, traffic.bytes
    for name, data in draw(job):
        check()
        files.write(folder / f"{name}{suffix}", data)
        count += 1
    fetched = traffic.requests - before[0], traffic.bytes - before[1]
    return Outcome(count=count, missing=painter_of(job.options).missing_characters, fetched=fetched)


def scenes(job: Job) -> Iterator[tuple[str, Scene]]:
    """What the pictures of a job show, as (file name without its ending, scene)."""
    return _view(job).scenes(job.unit, _wanted(job))


def _wanted(job: Job) -> frozenset[str] | None:
    return None if job.stems is None else frozenset(job.stems)


@lru_cache(maxsize=2)
def painter_of(options: RenderOptions) -> Painter:
    """The painter of this process for these options; it keeps its glyphs from picture to picture."""
    return Painter(options.dpi, palette=options.palette)


def _view(job: Job) -> View:
    # A capture that goes on, or a new one in its place, has another document: what was read before is stale then.
    read = [(one.store, one.capture) for one in (job, job.other) if one is not None]
    versions = tuple(file_version(store, f"{capture}/zarr.json") for store, capture in read)
    return _open(job.store, job.capture, job.options, job.other, versions)


@lru_cache(maxsize=2)
def _open(store: str, capture: str, options: RenderOptions, other: Other | None, _versions: Hashable) -> View:
    found = attnlens.open(store)[capture]
    if other is None:
        return open_view(found, options)
    from attnlens.render.diff.comparison import Comparison
    from attnlens.render.diff.view import DiffView

    both = Comparison(found, attnlens.open(other.store)[other.capture], other.align)
    return DiffView(both, options, other.limit)
