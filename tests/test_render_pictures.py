"""From a store to a folder: names, contents, refusals, kills."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attnlens
from attnlens.render.look.caption import details, headline
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import ready_plans, render
from attnlens.render.run import files
from attnlens.render.scene import Scene
from attnlens.render.text.legible import legible
from attnlens.render.views.open import open_view
from attnlens.schemas.errors import AbsentError, AttnlensError, InputError
from attnlens.store.reader import Capture
from render_store import WORDS, Made, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made") / "run.zarr", without_attention=(1,), raw={3: b"\xe2\x80"})


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def expected_names(queries: range, n_prompt: int, window: int, step: int) -> list[str]:
    """The names, from the loop of the program whose pictures these are."""
    found = []
    for query in queries:
        columns = query + 1
        stem = f"attn_{query - n_prompt}" if query >= n_prompt else f"attn_p{query}"
        if window >= columns:
            found.append(f"{stem}.png")
        else:
            found += [f"{stem}_{j}.png" for j in range(len(range(0, columns - window + step, step)))]
    return sorted(found)


@pytest.mark.parametrize(("window", "step"), [(32, 5), (4, 2), (7, 3), (1, 1)])
def test_names(made: Made, tmp_path: Path, window: int, step: int) -> None:
    report = render(made.path, tmp_path / "out", options=RenderOptions(window=window, step=step, dpi=30))
    expected = expected_names(range(made.n_prompt, made.n_token - 1), made.n_prompt, window, step)
    assert names(tmp_path / "out") == expected
    assert report.count == len(expected)


def test_prompt_pictures_have_names_of_their_own(made: Made, tmp_path: Path) -> None:
    render(made.path, tmp_path, options=RenderOptions(queries="all", window=6, dpi=30))
    assert names(tmp_path) == expected_names(range(made.n_token - 1), made.n_prompt, 6, 5)


def test_every_picture_opens(made: Made, tmp_path: Path) -> None:
    render(made.path, tmp_path)
    for name in names(tmp_path):
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.size[0] > 500


def scenes(made: Made, query: int, *, heads: str = "max", layers: str | None = None, window: int = 4) -> list[Scene]:
    options = RenderOptions(queries=str(query), heads=heads, layers=layers, window=window, step=3)
    view = open_view(attnlens.open(made.path)["0000"], options)
    return [scene for _, scene in view.scenes(query)]


@pytest.mark.parametrize("heads", ["max", "mean", "min", "1,3", "2"])
@pytest.mark.parametrize("query", [2, 5, 8])
def test_colours_are_the_stored_attention(made: Made, heads: str, query: int) -> None:
    weights = made.weights[:, :, query].astype(np.float32)
    reduced = {
        "max": weights.max(1),
        "mean": weights.mean(1).astype(np.float16),
        "min": weights.min(1),
        "1,3": np.maximum(weights[:, 1], weights[:, 3]),
        "2": weights[:, 2],
    }[heads].astype(np.float32)
    for drawn in scenes(made, query, heads=heads):
        assert drawn.matrix.dtype == np.float32
        columns = slice(drawn.columns[0], drawn.columns[-1] + 1)
        np.testing.assert_allclose(drawn.matrix[:-1], reduced[:, columns], rtol=2e-3)
        assert np.isnan(drawn.matrix[1]).all()
        assert not drawn.matrix[-1].any()


def test_texts_are_token_then_lens_by_depth(made: Made) -> None:
    for drawn in scenes(made, 8):
        for index, column in enumerate(drawn.columns):
            assert drawn.labels[0][index] == ("<E2><80>" if column == 3 else legible(made.token_text[column]))
            for depth in range(1, made.lens_token.shape[0]):
                word = int(made.lens_token[depth, column, 0])
                assert drawn.labels[depth][index] == ("<E2><80>" if word == 3 else legible(WORDS[word]))


def test_title_says_who_looks_and_what_it_predicts(made: Made) -> None:
    drawn = scenes(made, 8)[0]
    token, chance = int(made.lens_token[-1, 8, 0]), float(made.lens_probability[-1, 8, 0])
    assert drawn.predicted is not None
    assert drawn.predicted.probability == chance
    assert headline(drawn).startswith(f"token 8 “{legible(made.token_text[8])}” (generated 2)   predicts “")
    assert f"({chance:.3f})" in headline(drawn)
    assert ("next came" in headline(drawn)) == (token != made.token_id[9])
    assert details(drawn)[:4] == ("made/up", "capture 0000", "attention: max over 4 heads", "tokens 0–3 of 0–8")


def test_layers_choose_rows(made: Made) -> None:
    assert [drawn.rows for drawn in scenes(made, 8, layers="0,2")] == [(0, 2, 3)] * 3
    only = scenes(made, 8, layers="2")[0]
    np.testing.assert_array_equal(only.matrix[0], made.weights[2, :, 8, :4].astype(np.float32).max(0))
    assert scenes(made, 8, layers=":2")[0].final_row is None


def test_without_a_lens_there_is_attention_and_no_made_up_text(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr", lens=False)
    drawn = scenes(made, 8)[0]
    assert drawn.labels[0] == tuple(map(legible, made.token_text[:4]))
    assert {text for row in drawn.labels[1:] for text in row} == {""}
    assert drawn.predicted is None
    assert "no lens: the output head was not found" in details(drawn)
    assert f"next came “{legible(made.token_text[9])}”" in headline(drawn)
    assert render(made.path, tmp_path / "out").count == 4


def test_forced_captures_have_a_picture_of_the_last_token(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr", forced=True)
    assert render(made.path, tmp_path / "out").count == 5
    assert "attn_4.png" in names(tmp_path / "out")


def test_partial_captures_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr", broken_off=8)
    render(made.path, tmp_path / "out")
    assert names(tmp_path / "out") == ["attn_0.png", "attn_1.png"]
    with pytest.raises(AbsentError, match="token 9 of capture 0000 has no row"):
        render(made.path, tmp_path / "out", options=RenderOptions(queries="9"))


def test_plans_of_many_captures_hold_few_of_them_open(tmp_path: Path) -> None:
    gc.collect()
    before = {id(one) for one in gc.get_objects() if type(one) is Capture}
    for number in range(9):
        make(tmp_path / "run.zarr", n_prompt=3, n_generated=2, append=number > 0)
    plans, _ = ready_plans(tmp_path / "run.zarr", tmp_path / "out", RenderOptions())
    assert [plan.count() for plan in plans] == [plans[0].count()] * 9
    gc.collect()
    held = [one for one in gc.get_objects() if type(one) is Capture and id(one) not in before]
    assert 0 < len(held) <= 4
    assert [plan.capture.id for plan in plans] == [f"{number:04}" for number in range(9)]


def test_several_captures_get_a_folder_each(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    make(tmp_path / "run.zarr", n_generated=1, append=True)
    make(tmp_path / "run.zarr", n_generated=3, append=True, seed=1)
    report = render(tmp_path / "run.zarr", tmp_path / "all", options=RenderOptions(dpi=30))
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"0000", "0002"}
    assert report.count == 6
    assert len(report.notes) == 1
    assert "capture 0001 has no generated token" in report.notes[0]
    render(tmp_path / "run.zarr", tmp_path / "one", options=RenderOptions(capture="0002", dpi=30))
    assert names(tmp_path / "one") == ["attn_0.png", "attn_1.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "--window 0"),
        ({"step": 0}, "--step 0"),
        ({"heads": "4"}, "there are 4 heads"),
        ({"heads": "mode"}, "--heads 'mode' is not understood"),
        ({"layers": "7"}, "there are 3 layers"),
        ({"queries": "nonsense"}, "--queries 'nonsense' is not understood"),
        ({"queries": "10"}, "token 10 of capture 0000 has no row"),
        ({"queries": "11"}, "--queries 11 is out of range"),
        ({"cmap": "cool_warm"}, "did you mean coolwarm"),
        ({"dpi": 5}, "--dpi 5"),
        ({"capture": "0007"}, "has no capture '0007'; it has 0000"),
    ],
)
def test_bad_options_are_told_in_one_line_and_nothing_is_written(
    made: Made, tmp_path: Path, change: dict[str, str | int], message: str
) -> None:
    options = dataclasses.replace(RenderOptions(), **change)  # type: ignore[arg-type]
    with pytest.raises(AttnlensError, match=message) as caught:
        render(made.path, tmp_path / "out", options=options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_gaps_between_windows_are_told(made: Made, tmp_path: Path) -> None:
    report = render(made.path, tmp_path, options=RenderOptions(window=2, step=5, dpi=30))
    assert report.notes == ("--step 5 is larger than --window 2: some columns are in no picture",)


def test_a_file_in_the_place_of_the_folder_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for place in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InputError, match="taken"):
            render(made.path, place)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"cannot write .*a\.png: No space left"):
        files.write(tmp_path / "a.png", b"data")
    assert names(tmp_path) == []


class Counting:
    """Progress that notes what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done = 0
        self.ended = False

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        self.stages.append((name, total))

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount

    def end(self) -> None:
        self.ended = True


def test_progress_counts_pictures(made: Made, tmp_path: Path) -> None:
    progress = Counting()
    report = render(made.path, tmp_path, options=RenderOptions(dpi=30), progress=progress)
    assert progress.stages == [("pictures", report.count)]
    assert progress.done == report.count
    assert progress.ended


def test_rendering_twice_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    render(made.path, tmp_path / "a", options=RenderOptions(window=4))
    render(made.path, tmp_path / "b", options=RenderOptions(window=4, queries="-2:"))
    for name in names(tmp_path / "b"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


PROGRAM = """
import sys
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
render(sys.argv[1], sys.argv[2], options=RenderOptions(queries="all", window=2, step=1))
heavy = {"torch", "transformers", "accelerate", "attnlens.capture", "seaborn", "matplotlib.pyplot"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""


def test_rendering_imports_nothing_of_the_gpu_stage(made: Made, tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            PROGRAM,
            str(made.path),
            str(tmp_path),
        ],
        check=True,
    )


def test_a_kill_leaves_whole_pictures_only(made: Made, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(made.path), str(tmp_path / "out")])
    patience = time.monotonic() + 60
    while not list(tmp_path.glob("out/*.png")) and time.monotonic() < patience:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pictures = list(tmp_path.glob("out/*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as image:
            image.load()
