"""Pictures drawn again from the recipe inside them, and animations."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attnlens
from attnlens.render.films import film_named, films
from attnlens.render.films.animate import render_films
from attnlens.render.formats import format_named
from attnlens.render.formats.png import with_recipe
from attnlens.render.options import RenderOptions
from attnlens.render.painter.painter import Painter
from attnlens.render.pictures import render
from attnlens.render.recipes.again import draw_again
from attnlens.render.recipes.recipe import identity
from attnlens.schemas.errors import AttnlensError, InputError
from render_store import Made, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made") / "run.zarr", without_attention=(1,))


OPTIONS = [
    RenderOptions(dpi=30),
    RenderOptions(dpi=30, format="svg", window=4, step=3, heads="mean", scale="rank", theme="dark"),
    RenderOptions(dpi=30, format="pdf", queries="all", layers="0:2", cmap="viridis", text="entropy"),
    RenderOptions(dpi=30, format="webp", tokens="2:9", scale="drop-sink"),
    RenderOptions(dpi=30, palette=True, heads="each", queries="prompt"),
    RenderOptions(dpi=30, sheet=True, window=4),
    RenderOptions(dpi=30, sheet=True, window=6, heads="each", format="svg"),
    RenderOptions(dpi=30, map="0:1", window=4, queries="all"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_picture_is_drawn_again_byte_for_byte(made: Made, tmp_path: Path, options: RenderOptions) -> None:
    render(made.path, tmp_path / "first", options=options)
    pictures = sorted((tmp_path / "first").iterdir())
    assert pictures
    for picture in pictures[:: max(1, len(pictures) // 3)]:
        report = draw_again(picture, made.path, tmp_path / "again")
        assert report.same
        assert report.notes == ()
        assert report.path.read_bytes() == picture.read_bytes()
        if options.map is None:
            assert report.path.name == picture.name


def test_a_recipe_says_what_is_shown_and_not_where_it_was(made: Made, tmp_path: Path) -> None:
    render(made.path, tmp_path, options=RenderOptions(dpi=30, window=4, heads="0,2"))
    text = format_named("png").recipe((tmp_path / "attn_2_1.png").read_bytes())
    found = json.loads(text or "")
    capture = attnlens.open(made.path)["0000"]
    assert found["store"] == identity(capture) == capture.metadata.digest
    assert (found["capture"], found["query"], found["columns"]) == ("0000", 8, "5-8")
    assert found["options"]["heads"] == "0,2"
    assert found["options"]["scale"] == "raw"
    assert found["software"] == f"attnlens {attnlens.__version__}"
    assert str(made.path.parent) not in (text or "")


def test_another_store_is_refused(made: Made, tmp_path: Path) -> None:
    render(made.path, tmp_path / "first", options=RenderOptions(dpi=30, queries="8"))
    picture = tmp_path / "first" / "attn_2.png"
    other = make(tmp_path / "other.zarr", seed=3)
    with pytest.raises(
        InputError, match=r"drawn from another store than .*other\.zarr: it shows capture 0000 of model"
    ):
        draw_again(picture, other.path, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    moved = tmp_path / "moved" / "elsewhere.zarr"
    shutil.copytree(made.path, moved)
    assert draw_again(picture, moved, tmp_path / "again").same


def test_a_capture_that_still_grows_is_known_by_its_beginning(tmp_path: Path) -> None:
    partial = make(tmp_path / "run.zarr", broken_off=9)
    render(partial.path, tmp_path / "first", options=RenderOptions(dpi=30))
    assert draw_again(tmp_path / "first" / "attn_1.png", partial.path, tmp_path / "again").same


def test_pictures_without_a_recipe_are_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "bare.png").write_bytes(_bare())
    (tmp_path / "text.txt").write_text("hello")
    for name in ("bare.png", "text.txt"):
        with pytest.raises(InputError, match="holds no recipe"):
            draw_again(tmp_path / name, made.path, tmp_path / "again")
    with pytest.raises(InputError, match="cannot read"):
        draw_again(tmp_path / "absent.png", made.path, tmp_path / "again")


def _bare() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def recipe(made: Made, **changes: object) -> dict[str, object]:
    capture = attnlens.open(made.path)["0000"]
    found: dict[str, object] = {
        "recipe": 1,
        "software": "attnlens 9.9",
        "store": identity(capture),
        "capture": "0000",
        "query": 8,
        "columns": "0-8",
        "options": {"dpi": 30},
    }
    return {**found, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"future": 1}}, "attnlens 9.9 with future"),
        ({"options": {"dpi": 5}}, "--dpi 5"),
        ({"options": {"format": "../x"}}, "there is no such format"),
        ({"query": 10**9}, "out of range"),
        ({"diff": {}}, "a picture of lens diff"),
        ({}, "cuts the capture into other pictures than attnlens 9.9"),
        ({"film": {"format": "gif", "fps": 0}}, "--fps 0 is out of range"),
        ({"film": {"format": "gif", "fps": "x"}}, "damaged"),
    ],
)
def test_recipes_of_strangers(made: Made, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    (tmp_path / "a.png").write_bytes(with_recipe(_bare(), recipe(made, **changes)))
    with pytest.raises(AttnlensError, match=message):
        draw_again(tmp_path / "a.png", made.path, tmp_path / "again")


@pytest.mark.parametrize("name", [film.NAME for film in films()])
def test_an_animation_has_a_frame_for_every_token(made: Made, tmp_path: Path, name: str) -> None:
    if name == "mp4":
        pytest.importorskip("av")
    options = RenderOptions(dpi=40, window=8)
    report = render_films(made.path, tmp_path / "first", film=name, fps=4, options=options)
    path = tmp_path / "first" / f"attn{film_named(name).SUFFIX}"
    assert report.count == 1
    assert [path] == list((tmp_path / "first").iterdir())
    frames = made.n_token - 1 - made.n_prompt
    if name == "mp4":
        assert _mp4_frames(path) == frames
    else:
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == frames
            assert image.info["duration"] == 250
            for number in range(frames):
                image.seek(number)
                shown = np.asarray(image.convert("RGB")).astype(int)
                render(made.path, tmp_path / "one", options=RenderOptions(dpi=40, window=8, queries=str(6 + number)))
                last = max((tmp_path / "one").glob(f"attn_{number}*.png"))
                with Image.open(last) as still:
                    expected = np.asarray(still.convert("RGB")).astype(int)
                height, width = expected.shape[:2]
                off = np.abs(shown[:height, :width] - expected)
                assert off.max() <= (0 if name == "apng" else 80)
                assert off.mean() < 1
    again = draw_again(path, made.path, tmp_path / "again")
    assert again.same
    assert again.path.name == path.name


def _mp4_frames(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_an_animation_a_head(made: Made, tmp_path: Path) -> None:
    report = render_films(made.path, tmp_path, film="apng", options=RenderOptions(dpi=20, heads="each"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"attn_h{head}.apng" for head in range(4)]
    assert report.count == 4


def test_animations_that_cannot_be(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--animate 'avi': there is no such format, choose gif, apng, mp4"):
        render_films(made.path, tmp_path, film="avi")
    with pytest.raises(InputError, match="--fps 99 is out of range"):
        render_films(made.path, tmp_path, film="gif", fps=99)


def test_a_page_of_every_window_is_named_for_its_query(made: Made, tmp_path: Path) -> None:
    render(made.path, tmp_path, options=RenderOptions(dpi=30, sheet=True, window=4, step=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"attn_{i}_sheet.png" for i in range(4)]
    assert Painter(30).dpi == 30
