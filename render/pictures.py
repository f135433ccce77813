"""`lens render`: a store in, a folder of pictures out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import attnlens
from attnlens.progress import Progress, Silent
from attnlens.render import files
from attnlens.render.colour import Colours
from attnlens.render.heads import Heads, select_heads
from attnlens.render.layers import select_rows
from attnlens.render.layout import lay_out
from attnlens.render.paint import Painter
from attnlens.render.queries import select_queries, stem
from attnlens.render.scene import build_scene
from attnlens.render.source import Source, timeline
from attnlens.render.windows import Window, check_window, windows
from attnlens.schemas.errors import AbsentError, InputError

if TYPE_CHECKING:
    from attnlens.store.reader import Capture, Store


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """What is drawn and how.

    capture: id of one capture; None draws all of them, each into a folder of its name if there are several.
    queries: `generated`, `prompt`, `all`, or positions on the timeline (`57`, `40:60`, `-5:`, `3,5-7`).
    window, step: columns of a picture, and how far the next picture moves.
    layers: None for all, or a list or slice of layers.
    heads: `max`, `mean`, `min`, or head numbers, which are reduced by max.
    cmap: a colormap of matplotlib, over 0 … 1. dpi: pixels an inch; a cell is 0.78 × 0.34 inch.
    """

    capture: str | None = None
    queries: str = "generated"
    window: int = 32
    step: int = 5
    layers: str | None = None
    heads: str = "max"
    cmap: str = "coolwarm"
    dpi: int = 100


@dataclass(frozen=True, kw_only=True)
class RenderReport:
    """What was drawn: number of pictures, where, how long it took in seconds.

    `missing_characters` counts the different characters that the font lacks and that were drawn as code points.
    `notes` are lines a person should read: captures left out, columns that no window shows.
    """

    count: int
    folder: Path
    seconds: float
    missing_characters: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The pictures of one capture, checked and ready to draw."""

    capture: Capture
    folder: Path
    queries: tuple[int, ...]
    rows: tuple[int, ...]
    heads: Heads

    def windows(self, options: RenderOptions) -> Iterator[tuple[int, tuple[Window, ...]]]:
        for query in self.queries:
            yield query, windows(query, options.window, options.step)


def render(
    store_path: str | PathLike[str],
    out_dir: str | PathLike[str],
    *,
    options: RenderOptions | None = None,
    progress: Progress | None = None,
) -> RenderReport:
    """Draw windowed pictures of a store as PNG files into `out_dir`, which is made if need be.

    Files are `attn_{i}_{j}.png` for generated token i and window j, `attn_p{q}_{j}.png` for prompt position q, without
    `_{j}` where one picture holds all columns. Everything is checked before the first picture is drawn.

    Raises:
        InputError: an option cannot be used, or the folder cannot be written.
        AbsentError: what was asked for was never captured.
        StoreError: `store_path` is not a store, or is damaged.
    """
    began = time.monotonic()
    options, progress = options or RenderOptions(), progress or Silent()
    check_window(options.window, options.step)
    Colours(options.cmap)
    painter = Painter(options.dpi)
    jobs, notes = _jobs(attnlens.open(store_path), Path(out_dir), options)
    for job in jobs:
        lay_out(len(job.rows), min(options.window, job.queries[-1] + 1), options.dpi)
    for job in jobs:
        files.prepare(job.folder)
    count = sum(len(found) for job in jobs for _, found in job.windows(options))
    progress.stage("pictures", count, "pictures")
    for job in jobs:
        _draw(job, options, painter, progress)
    progress.end()
    return RenderReport(
        count=count,
        folder=Path(out_dir),
        seconds=time.monotonic() - began,
        missing_characters=painter.missing,
        notes=notes,
    )


def _draw(job: _Job, options: RenderOptions, painter: Painter, progress: Progress) -> None:
    source = Source(job.capture, rows=job.rows, heads=job.heads)
    for query, found in job.windows(options):
        evidence = source.evidence(query)
        for window in found:
            scene = build_scene(evidence, window, source.subject, colormap=options.cmap)
            name = f"{stem(query, job.capture.n_prompt)}{window.suffix}.png"
            files.write(job.folder / name, painter.paint(scene))
            progress.advance()


def _jobs(store: Store, folder: Path, options: RenderOptions) -> tuple[list[_Job], tuple[str, ...]]:
    """One job a capture, and notes. Of several captures those that hold nothing to draw are left out, with a note."""
    ids = _ids(store.ids, options.capture)
    notes: list[str] = []
    jobs: list[_Job] = []
    for name in ids:
        try:
            jobs.append(_job(store[name], folder if len(ids) == 1 else folder / name, options))
        except AbsentError as error:
            if len(ids) == 1:
                raise
            notes.append(f"left out: {error}")
    if not jobs:
        raise AbsentError(f"none of the {len(ids)} captures holds anything to draw; {notes[0]}")
    if options.step > options.window and any(job.queries[-1] >= options.window for job in jobs):
        notes.append(f"--step {options.step} is larger than --window {options.window}: some columns are in no picture")
    return jobs, tuple(notes)


def _ids(there: Sequence[str], wanted: str | None) -> Sequence[str]:
    if wanted is None:
        if not there:
            raise AbsentError("the store holds no capture")
        return there
    if wanted not in there:
        raise InputError(f"--capture {wanted}: there is none, the store holds {', '.join(there) or 'no capture'}")
    return (wanted,)


def _job(capture: Capture, folder: Path, options: RenderOptions) -> _Job:
    metadata = capture.metadata
    if metadata.attention is None:
        raise AbsentError(f"capture {capture.id} holds no attention: {metadata.attention_absent or 'none was stored'}")
    return _Job(
        capture=capture,
        folder=folder,
        queries=select_queries(options.queries, timeline(capture)),
        rows=select_rows(options.layers, metadata.model.n_layer),
        heads=select_heads(options.heads, metadata.model.n_head),
    )
