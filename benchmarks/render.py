"""Pictures against the ancestor's: `seaborn.heatmap(annot=…)` on a 28 × 18 inch figure at 100 dpi, one at a time.

    python benchmarks/render.py                       a made-up store of 31 rows, 100 generated tokens
    python benchmarks/render.py run.zarr --pictures 200

Same store, same windows, the same number of pixels, file writes included, one process on one core. `warm`: every
text was drawn before; `cold`: the mean of a run by a painter that has drawn nothing. Ways take turns and medians are
told, because machines are not quiet.
Needs seaborn, which nothing else here does: `pip install 'attnlens[bench]'`, or `make bench`.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import attnlens
from attnlens.render.formats import format_named
from attnlens.render.look.furniture import layout_of
from attnlens.render.options import RenderOptions
from attnlens.render.painter import squeeze
from attnlens.render.painter.painter import Painter
from attnlens.render.scene import Scene
from attnlens.render.views.open import open_view

INCHES, DPI = (28, 18), 100
PIXELS = INCHES[0] * DPI * INCHES[1] * DPI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(everywhere)})
    with tempfile.TemporaryDirectory() as folder:
        store = asked.store or made_up(Path(folder) / "made.zarr")
        pictures = list(islice(scenes(store), asked.pictures))
        compare(pictures, Path(folder), asked.rounds)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, everywhere)
        spread(store, Path(folder))


def compare(pictures: list[tuple[str, Scene]], folder: Path, rounds: int) -> None:
    dpi = resolution(pictures[-1][1])
    layout = layout_of(pictures[-1][1], dpi)[0]
    texts = {text for _, scene in pictures for row in scene.labels for text in row}
    print(
        f"{len(pictures)} pictures of {layout.n_row} × {layout.n_column} cells, {len(texts)} texts; "
        f"ours {layout.width} × {layout.height} pixels at {dpi} dpi, "
        f"the ancestor's {INCHES[0] * DPI} × {INCHES[1] * DPI}"
    )
    ways: dict[str, tuple[Callable[[], Painter], str]] = {
        "RGB": (lambda: Painter(dpi), "png"),
        "palette": (lambda: Painter(dpi, palette=True), "png"),
        "RGB, zlib": (lambda: Painter(dpi), "png"),
        "svg": (lambda: Painter(dpi), "svg"),
    }
    with_isal = squeeze.isal_zlib
    painters: dict[str, Painter] = {}
    ancestor: list[float] = []
    warm: dict[str, list[float]] = {name: [] for name in ways}
    cold: dict[str, list[float]] = {name: [] for name in ways}
    for name, (make, kind) in ways.items():
        squeeze.isal_zlib = None if name.endswith("zlib") else with_isal
        painters[name] = make()
        run(pictures, painters[name], kind, folder)
    for number in range(rounds):
        ancestor.append(timed(lambda number=number: by_ancestor(pictures[-1 - number][1], folder / "ancestor.png")))  # type: ignore[misc]
        for name, (make, kind) in ways.items():
            squeeze.isal_zlib = None if name.endswith("zlib") else with_isal
            warm[name] += run(pictures, painters[name], kind, folder)
            cold[name].append(statistics.mean(run(pictures, make(), kind, folder)))
            squeeze.isal_zlib = with_isal
    base = statistics.median(ancestor)
    print(f"{'ancestor':<12}{base * 1e3:10.1f} ms a picture")
    for name in ways:
        first, again = statistics.median(cold[name]), statistics.median(warm[name])
        told = [
            f"{each * 1e3:8.2f} ms {kind} {base / each:6.0f} ×" for kind, each in (("warm", again), ("cold", first))
        ]
        print(f"{name:<12}" + "   ".join(told))


def spread(store: Path, folder: Path) -> None:
    """The command, start-up included, on one process and on two."""
    seconds = {}
    for workers in (1, 2):
        out = folder / f"out{workers}"
        command = [sys.executable, "-m", "attnlens", "render", str(store), "-o", str(out), "--quiet"]
        seconds[workers] = timed(lambda: subprocess.run([*command, f"--workers={workers}"], check=True, stdout=-3))  # noqa: B023
        count = len(list(out.iterdir()))
        rate = count / seconds[workers]
        print(f"lens render --workers {workers}: {count} pictures in {seconds[workers]:.2f} s, {rate:.0f}/s")
    print(f"two workers: {seconds[1] / seconds[2]:.2f} ×, start-up included")


def run(pictures: Iterable[tuple[str, Scene]], painter: Painter, kind: str, folder: Path) -> list[float]:
    """Seconds of every picture, written into an empty folder as a run writes them: replacing files costs disks more."""
    shutil.rmtree(folder / "fresh", ignore_errors=True)
    (folder / "fresh").mkdir()
    form, seconds = format_named(kind), []
    for name, scene in pictures:
        began = time.perf_counter()
        (folder / "fresh" / f"{name}{form.SUFFIX}").write_bytes(form.encode(scene, painter))
        seconds.append(time.perf_counter() - began)
    return seconds


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_ancestor(scene: Scene, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    import seaborn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that its font lacks
        plt.figure(figsize=INCHES)
        seaborn.heatmap(
            scene.matrix,
            annot=np.array([[text.replace("$", r"\$") for text in row] for row in scene.labels]),
            fmt="",
            cmap=scene.colormap,
            vmin=0,
            vmax=1,
            xticklabels=[str(column) for column in scene.columns],
            yticklabels=True,
            linewidth=0.5,
            linecolor="black",
            annot_kws={"size": 6},
        )
        drawn = io.BytesIO()
        plt.savefig(drawn, dpi=DPI)
        plt.close()
    path.unlink(missing_ok=True)
    path.write_bytes(drawn.getvalue())


def scenes(store: Path) -> Iterator[tuple[str, Scene]]:
    """Pictures of full windows."""
    view = open_view(attnlens.open(store)[0], RenderOptions())
    for unit in view.units:
        for name, scene in view.scenes(unit):
            if len(scene.columns) == view.shape[1]:
                yield name, scene


def resolution(scene: Scene) -> int:
    """The lowest at which a picture has as many pixels as the ancestor's."""
    for dpi in range(50, 400):
        layout = layout_of(scene, dpi)[0]
        if layout.width * layout.height >= PIXELS:
            return dpi
    raise SystemExit("the pictures are too small to compare")


def made_up(path: Path) -> Path:
    """A store with attention that falls off from the query and with sinks, and words of several scripts."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import render_store

    rng = np.random.default_rng(0)
    letters = list("etaoinshrdlucmfwypvbgkqjxzéüñабвгдежзαβγδλ中文字符한국어")
    words = [
        ("" if rng.random() < 0.4 else " ") + "".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(3000)
    ]
    vars(render_store)["WORDS"] = tuple(words)
    render_store.make(path, n_prompt=60, n_generated=101, n_layer=32, n_head=8)
    return path


if __name__ == "__main__":
    main()
