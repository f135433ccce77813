"""`--animate`: one frame a unit, in order; each shows the unit's last window, which ends at the query."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.progress import Progress, Silent
from attnlens.render.films import Film, Reel, film_named
from attnlens.render.look.furniture import layout_of
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import RenderReport, ready_plans
from attnlens.render.recipes.recipe import to_text
from attnlens.render.run import files
from attnlens.render.run.jobs import painter_of
from attnlens.render.scene import Scene
from attnlens.render.text.numbers import runs
from attnlens.schemas.errors import InputError

if TYPE_CHECKING:
    from attnlens.render.formats import Pixels, Rasteriser
    from attnlens.render.views.view import View

_HEAD = re.compile(r"_h[0-9]+$")
_NUMBERS = re.compile(r"_p?[0-9]+(?=_|$)")


def render_films(
    store_path: str | PathLike[str],
    out_dir: str | PathLike[str],
    *,
    film: str,
    fps: float = 2.0,
    options: RenderOptions | None = None,
    progress: Progress | None = None,
) -> RenderReport:
    """Draw the animation of every capture into `out_dir`, in place of pictures: `attn.gif`, or one a head.

    Raises:
        InputError: an option cannot be used, or the folder cannot be written.
        MissingExtraError: the format needs a package that is not installed.
        AbsentError: what was asked for was never captured.
        StoreError: `store_path` is not a store, or is damaged.
    """
    began = time.monotonic()
    options, progress, form = options or RenderOptions(), progress or Silent(), film_named(film)
    check_fps(fps)
    form.check()
    plans, notes = ready_plans(store_path, out_dir, options)
    painter = painter_of(options)
    progress.stage("frames", sum(_count(plan.view) for plan in plans), "frames")
    count = 0
    for plan in plans:
        for name, data in animate(plan.view, painter, form, fps, progress):
            files.write(plan.folder / f"{name}{form.SUFFIX}", data)
            count += 1
    progress.end()
    return RenderReport(
        count=count,
        kept=0,
        folder=Path(out_dir),
        seconds=time.monotonic() - began,
        missing_characters=painter.missing,
        notes=notes,
    )


def animate(
    view: View, painter: Rasteriser, film: Film, fps: float, progress: Progress | None = None
) -> Iterator[tuple[str, bytes]]:
    """The animations of a view as (file name without its ending, bytes): one, or one a head.

    Raises:
        AbsentError: the store does not hold what the pictures need.
        StoreError: it is damaged.
    """
    progress = progress or Silent()
    for name, stems in _shots(view).items():
        sizes, last = [], None
        for scene in _scenes(view, stems):
            layout, _ = layout_of(scene, painter.dpi)
            sizes.append((layout.width, layout.height))
            last = scene
        assert last is not None
        reel = Reel(
            width=max(width for width, _ in sizes),
            height=max(height for _, height in sizes),
            fps=fps,
            dpi=painter.dpi,
            count=len(sizes),
            recipe=to_text(_recipe(last, view, film, fps)),
        )
        yield name, film.encode(_frames(view, stems, painter, reel, progress), reel)


def check_fps(fps: float) -> None:
    """Refuse what no player shows.

    Raises:
        InputError: it is not between 0.1 and 50.
    """
    if not 0.1 <= fps <= 50:
        raise InputError(f"--fps {fps:g} is out of range: 0.1 … 50")


def _count(view: View) -> int:
    return sum(len(stems) for stems in _shots(view).values())


def _shots(view: View) -> dict[str, dict[int, str]]:
    """Animation → for each unit the picture that is its frame."""
    found: dict[str, dict[int, str]] = {}
    for unit in view.units:
        for stem in view.stems(unit):
            head = _HEAD.search(stem)
            name = _NUMBERS.sub("", _HEAD.sub("", stem)) + (head[0] if head else "")
            found.setdefault(name, {})[unit] = stem  # the last one stays
    return found


def _scenes(view: View, stems: dict[int, str]) -> Iterator[Scene]:
    for unit, stem in stems.items():
        for _, scene in view.scenes(unit, (stem,)):
            yield scene


def _frames(view: View, stems: dict[int, str], painter: Rasteriser, reel: Reel, progress: Progress) -> Iterator[Pixels]:
    for scene in _scenes(view, stems):
        pixels = painter.pixels(scene)
        frame = np.empty((reel.height, reel.width, 3), np.uint8)
        frame[:] = pixels[0, 0]
        frame[: pixels.shape[0], : pixels.shape[1]] = pixels
        progress.advance()
        yield frame


def _recipe(last: Scene, view: View, film: Film, fps: float) -> dict[str, Any]:
    shared = {key: value for key, value in last.recipe.items() if key not in ("query", "columns")}
    return {**shared, "queries": runs(view.units), "film": {"format": film.NAME, "fps": float(fps)}}
