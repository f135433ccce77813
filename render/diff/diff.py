"""`lens diff`: two captures in, pictures of what differs and a table of numbers out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import attnlens
from attnlens.progress import Progress, Silent
from attnlens.render.diff.comparison import Align, Comparison, DepthRow
from attnlens.render.diff.jobs import Kept, job_of
from attnlens.render.diff.view import DiffView
from attnlens.render.formats import format_named
from attnlens.render.look.colour import Colours
from attnlens.render.look.layout import lay_out
from attnlens.render.options import RenderOptions
from attnlens.render.run import files, workers
from attnlens.render.run.helpers import cores
from attnlens.render.run.jobs import Job, Other
from attnlens.render.run.products import names
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.naming import tell_apart

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One line of the table: attention of layer `a` of A and `b` of B over the drawn queries and aligned columns.

    mean, largest: of |B - A| of what is drawn; None where one of the layers has no attention.
    """

    a: int
    b: int
    mean: float | None
    largest: float | None


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """What was compared and drawn.

    a, b: store and capture. model_a, model_b: names of the models, told apart as far as the captures' records do.
    exact: both captures hold the same tokens, so that every number compares like with like. aligned: pieces of text
    with a partner, of n_token_a and n_token_b tokens. count, kept: pictures drawn, and pictures that were there. limit:
    end of the colour scale. depths: the lenses; layers: the attention; see `DepthRow`, `LayerRow`.
    """

    a: str
    b: str
    model_a: str
    model_b: str
    align: Align
    exact: bool
    aligned: int
    n_token_a: int
    n_token_b: int
    count: int
    kept: int
    folder: Path
    seconds: float
    missing_characters: int
    limit: float
    depths: tuple[DepthRow, ...]
    layers: tuple[LayerRow, ...]
    notes: tuple[str, ...]


def diff(
    a: str | PathLike[str],
    b: str | PathLike[str],
    out_dir: str | PathLike[str],
    *,
    capture_a: str | None = None,
    capture_b: str | None = None,
    align: str = "auto",
    limit: float | None = None,
    options: RenderOptions | None = None,
    progress: Progress | None = None,
    n_workers: int | None = 1,
    resume: bool = False,
) -> DiffReport:
    """Compare capture A with capture B, draw B less A into `out_dir`, and count.

    Args:
        a, b: stores; `run.zarr#0001` names the capture as well.
        out_dir: folder of the pictures, made if need be.
        capture_a, capture_b: captures by id; needed where a store holds several.
        align: `token`, `character`, or `auto`: by token where the vocabularies are the same.
        limit: the scale goes from -limit to limit; None: the largest difference in the pictures, rounded up.
        options: what is drawn of A's queries, as for `render`; `capture`, `map` and `tokens` are not looked at.
        progress: where it is told.
        n_workers: processes that draw; None for one a processor.
        resume: leave alone pictures that are there, whole, and of this very comparison.

    Raises:
        InputError: an option cannot be used, or the folder cannot be written.
        AbsentError: what was asked for was never captured, or nothing belongs together.
        StoreError: a store is damaged.
    """
    began = time.monotonic()
    options, progress = options or RenderOptions(cmap="RdBu_r"), progress or Silent()
    if limit is not None and not 0 < limit < math.inf:
        raise InputError(f"--limit {limit:g}: expected a number above 0")
    if n_workers is not None and n_workers < 1:
        raise InputError(f"--workers {n_workers}: at least 1 process has to draw")
    Colours(options.cmap)
    (store_a, one), (store_b, two) = find_capture(a, capture_a, "a"), find_capture(b, capture_b, "b")
    both = Comparison(one, two, align)
    view, folder = DiffView(both, options), Path(out_dir)
    format_named(options.format)
    lay_out(*view.shape, options.dpi)
    files.prepare(folder)
    progress.stage("comparing", len(view.units), "queries")
    layers, largest = _attention(view, both, progress)
    view.limit = limit if limit is not None else rounded_up(largest)
    depths = both.table()
    total = sum(len(names(view, unit, options)) for unit in view.units)
    progress.stage("pictures", total, "pictures")
    first = Job(
        store=store_a,
        capture=one.id,
        unit=view.units[0],
        stems=None,
        folder=str(folder),
        options=options,
        other=Other(store=store_b, capture=two.id, align=both.align, limit=view.limit),
    )
    kept = Kept(view, first, progress) if resume else None
    jobs = (job for unit in view.units if (job := job_of(first, unit, kept)) is not None)
    count, missing = 0, frozenset[str]()
    for outcome in workers.run(jobs, n_workers or cores(), total):
        count += outcome.count
        missing |= outcome.missing
        progress.advance(outcome.count)
    progress.end()
    models = tell_apart(one.metadata, two.metadata)
    places = _places((store_a, one), (store_b, two))
    return DiffReport(
        a=places[0],
        b=places[1],
        model_a=models[0],
        model_b=models[1],
        align=both.align,
        exact=both.identical,
        aligned=len(both.pairs),
        n_token_a=both.a.n_token,
        n_token_b=both.b.n_token,
        count=count,
        kept=kept.count if kept else 0,
        folder=folder,
        seconds=time.monotonic() - began,
        missing_characters=len(missing),
        limit=view.limit,
        depths=depths,
        layers=layers,
        notes=_notes(both, view),
    )


def find_capture(store: str | PathLike[str], name: str | None, side: str) -> tuple[str, Capture]:
    """Where the store is, and the capture that `STORE`, or `STORE#ID`, and `--capture-a` or `-b` name.

    Raises:
        InputError: the store holds several and none was named, or two were.
        AbsentError: there is none of that name.
        StoreError: it is no store, or a damaged one.
    """
    path, mark, fragment = str(store), "", ""
    if not Path(path).exists():
        path, mark, fragment = path.rpartition("#") if "#" in path else (path, "", "")
    if mark and name is not None and fragment != name:
        raise InputError(f"{store} names a capture and so does --capture-{side} {name}: leave one out")
    found = attnlens.open(path)
    wanted = name if name is not None else fragment if mark else None
    if wanted is not None:
        return path, found[wanted]
    if not found.ids:
        raise AbsentError(f"{path} holds no capture")
    if len(found.ids) > 1:
        raise InputError(
            f"{path} holds {len(found.ids)} captures ({', '.join(found.ids)}): name one, as in {path}#{found.ids[0]}"
        )
    return path, found[0]


def _places(*sides: tuple[str, Capture]) -> tuple[str, ...]:
    """Store and capture of each side; the stores by their whole paths where their names are the same."""
    short = tuple(f"{Path(store).name}#{capture.id}" for store, capture in sides)
    if len({store for store, _ in sides}) == 1 or len(set(short)) == len(short):
        return short
    return tuple(f"{store}#{capture.id}" for store, capture in sides)


def rounded_up(value: float) -> float:
    """The next of 1, 2, 5 × a power of ten; 1 for 0, so that no difference has a scale too."""
    if not value > 0:
        return 1.0
    power = math.floor(math.log10(value))
    steps = (float(f"{digit}e{power}") for digit in (1, 2, 5, 10))
    return next((step for step in steps if step >= value), float(f"2e{power + 1}"))


def _attention(view: DiffView, both: Comparison, progress: Progress) -> tuple[tuple[LayerRow, ...], float]:
    """Mean and largest |B - A| of each layer over all that will be drawn, and the largest of all."""
    n_layer = len(view.layers)
    total, count, most = np.zeros(n_layer), np.zeros(n_layer), np.zeros(n_layer)
    for unit in view.units:
        for values in view.differences(unit):
            size = np.abs(values.astype(np.float64))
            there = ~np.isnan(size)
            total += np.where(there, size, 0).sum(axis=1)
            count += there.sum(axis=1)
            most = np.fmax(most, np.where(there, size, 0).max(axis=1))
        progress.advance()
    rows = tuple(
        LayerRow(
            a=layer,
            b=both.layer(layer),
            mean=float(total[place] / count[place]) if count[place] else None,
            largest=float(most[place]) if count[place] else None,
        )
        for place, layer in enumerate(view.layers)
    )
    return rows, float(most.max())


def _notes(both: Comparison, view: DiffView) -> tuple[str, ...]:
    """What a reader of the numbers has to know."""
    notes = []
    if view.n_alone:
        asked = view.n_alone + len(view.units)
        notes.append(f"{view.n_alone} of the {asked} queries have no partner in B and no picture")
    a, b = both.a.metadata.model, both.b.metadata.model
    if both.layers[0] != both.layers[1]:
        notes.append(f"A has {both.layers[0]} layers and B {both.layers[1]}: paired by relative depth")
    if a.n_head != b.n_head:
        notes.append(f"A has {a.n_head} heads and B {b.n_head}: reductions go over different numbers of heads")
    if both.lens_absent:
        notes.append(f"lenses are not compared: {both.lens_absent}")
    elif not both.same_vocabulary:
        notes.append("the vocabularies differ: first choices are compared as text, and there is no JS divergence")
    return tuple(notes)
