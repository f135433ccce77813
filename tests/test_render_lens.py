"""Pictures of another lens than the first, and of attention × value norm, from a capture to the caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.capture import capture
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.render.recipes.again import draw_again
from attnlens.render.views.open import open_view
from attnlens.schemas.errors import AbsentError
from families import byte_tokenizer, tiny_model
from test_capture_evidence import write_tuned


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lenses")
    write_tuned(folder / "lens", 3, 32)
    capture(
        tiny_model("llama"), byte_tokenizer(), "The quick brown", folder / "run.zarr", raw=True, max_new_tokens=4,
        temperature=0, lenses=["logit", f"tuned:{folder / 'lens'}"],
    )  # fmt: skip
    return folder / "run.zarr"


def scene_of(store: Path, **options: Any) -> Any:
    view = open_view(attnlens.open(store)[0], RenderOptions(**options))
    return next(iter(view.scenes(view.units[0])))[1]


def test_the_texts_are_those_of_the_lens_that_was_named(store: Path) -> None:
    group: Any = zarr.open_group(store, mode="r")["0000"]
    tuned, plain = scene_of(store, text="probability", lens="tuned"), scene_of(store, text="probability")
    query = tuned.query
    for scene, name in ((tuned, "lens_probability_tuned"), (plain, "lens_probability")):
        stored = group[name][:]
        for row in range(3):
            assert scene.labels[row] == tuple(f"{stored[row, column, 0]:.2f}" for column in scene.columns)
        assert scene.predicted.probability == pytest.approx(float(stored[3, query, 0]))
    assert tuned.text_name.endswith(", lens tuned")
    assert scene_of(store, text="probability", lens="logit").labels == plain.labels
    with pytest.raises(AbsentError, match="--lens mine: capture 0000 has no such lens, it has logit, tuned"):
        scene_of(store, lens="mine")


def test_attention_times_value_norm_of_a_capture(store: Path) -> None:
    group: Any = zarr.open_group(store, mode="r")["0000"]
    scene = scene_of(store, scale="value-norm", heads="mean")
    weight, norm = group["attention_weight"][:].astype(np.float32), group["value_norm"][:]
    moved = weight[:, :, scene.query, : scene.query + 1] * norm[:, :, : scene.query + 1]
    share = (moved / moved.sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(scene.matrix[:3], share[:, list(scene.columns)], rtol=1e-4)


def test_a_picture_of_another_lens_is_drawn_again(store: Path, tmp_path: Path) -> None:
    drawn = render(store, tmp_path / "one", options=RenderOptions(lens="tuned", scale="value-norm"))
    assert drawn.count > 0
    picture = sorted((tmp_path / "one").glob("*.png"))[0]
    again = draw_again(picture, store, tmp_path / "two")
    assert again.same
    assert again.path.read_bytes() == picture.read_bytes()
