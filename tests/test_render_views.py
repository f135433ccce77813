"""`--text`, `--tokens`, `--map` and `--heads each`: scenes against the numbers that went into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import attnlens
from attnlens.render.look.caption import details, headline
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.render.scene import Scene
from attnlens.render.text.legible import legible
from attnlens.render.views.open import open_view
from attnlens.render.views.view import View
from attnlens.schemas.errors import AbsentError, InputError
from render_store import WORDS, Made, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made") / "run.zarr", without_attention=(1,))


def view(made: Made, **options: str | int) -> View:
    return open_view(attnlens.open(made.path)[0], RenderOptions(**options))  # type: ignore[arg-type]


def scenes(made: Made, **options: str | int) -> dict[str, Scene]:
    found = view(made, **options)
    made_scenes = {name: scene for unit in found.units for name, scene in found.scenes(unit)}
    assert list(made_scenes) == [name for unit in found.units for name in found.stems(unit)]
    largest = max(len(scene.rows) for scene in made_scenes.values()), max(len(s.columns) for s in made_scenes.values())
    assert found.shape == largest
    for scene in made_scenes.values():
        assert scene.matrix.shape == (len(scene.rows), len(scene.columns))
        assert [len(line) for line in scene.labels] == [len(scene.columns)] * len(scene.rows)
    return made_scenes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("probability", lambda made, depth, column: f"{made.lens_probability[depth, column, 0]:.2f}"),
        ("entropy", lambda made, depth, column: f"{made.lens_entropy[depth, column]:.2f}"),
        ("next-rank", lambda made, depth, column: str(made.next_rank[depth, column])),
        ("top-k", lambda made, depth, column: " | ".join(legible(WORDS[i]) for i in made.lens_token[depth, column])),
    ],
)
def test_texts_are_the_lens_s_at_every_depth(made: Made, text: str, expected: Callable[[Made, int, int], str]) -> None:
    (drawn,) = scenes(made, queries="9", text=text).values()
    for depth in range(4):
        assert drawn.labels[depth] == tuple(expected(made, depth, column) for column in range(10))
    assert drawn.column_labels == tuple(map(legible, made.token_text[:10]))
    assert any(line.startswith("text: ") for line in details(drawn))


def test_weights_as_texts_are_the_drawn_values(made: Made) -> None:
    (drawn,) = scenes(made, queries="9", text="weight", scale="log").values()
    for layer in (0, 2):
        assert drawn.labels[layer] == tuple(f"{value:.2f}" for value in drawn.matrix[layer])
    assert set(drawn.labels[1]) == {""}
    assert set(drawn.labels[3]) == {""}


def test_token_texts_need_no_second_line_below(made: Made) -> None:
    (drawn,) = scenes(made, queries="9").values()
    assert drawn.column_labels == ()
    assert drawn.labels[0] == tuple(map(legible, made.token_text[:10]))


def test_a_text_without_a_lens_is_refused_and_tokens_are_not(tmp_path: Path) -> None:
    plain = make(tmp_path / "run.zarr", lens=False)
    with pytest.raises(AbsentError, match=r"--text entropy: capture 0000 has no lens_entropy: .*output head"):
        view(plain, text="entropy")
    largest = plain.weights[0, :, 9, 0].astype(np.float32).max()
    assert scenes(plain, queries="9", text="weight")["attn_3"].labels[0][0] == f"{largest:.2f}"


def test_tokens_choose_columns(made: Made) -> None:
    drawn = scenes(made, queries="4,9", tokens="1,3,6:9")
    assert {name: scene.columns for name, scene in drawn.items()} == {"attn_p4": (1, 3), "attn_3": (1, 3, 6, 7, 8)}
    everything = scenes(made, queries="9")["attn_3"]
    np.testing.assert_array_equal(drawn["attn_3"].matrix, everything.matrix[:, [1, 3, 6, 7, 8]])
    assert drawn["attn_3"].labels[2] == tuple(everything.labels[2][column] for column in (1, 3, 6, 7, 8))
    assert drawn["attn_3"].boundary == 2
    assert "tokens 1, 3, 6–8 of 0–9" in details(drawn["attn_3"])
    windowed = scenes(made, queries="9", tokens="1,3,6:9", window=3, step=1)
    assert [scene.columns for scene in windowed.values()] == [(1, 3, 6), (3, 6, 7), (6, 7, 8)]


def test_queries_before_all_chosen_tokens_have_no_picture(made: Made) -> None:
    assert list(scenes(made, queries="all", tokens="8:")) == ["attn_2", "attn_3"]
    with pytest.raises(InputError, match="--tokens 8: all queries come before"):
        view(made, queries="3", tokens="8")


def test_each_head_has_a_picture(made: Made) -> None:
    drawn = scenes(made, queries="9", heads="each", window=6)
    assert list(drawn) == [f"attn_3_{window}_h{head}" for head in range(4) for window in range(2)]
    for head in range(4):
        weights = made.weights[[0, 2], head, 9, 4:10].astype(np.float32)
        np.testing.assert_array_equal(drawn[f"attn_3_1_h{head}"].matrix[[0, 2]], weights)
        assert f"attention: head {head} of 4" in details(drawn[f"attn_3_1_h{head}"])


def test_only_wanted_pictures_are_made(made: Made) -> None:
    found = view(made, queries="9", heads="each", window=6)
    assert [name for name, _ in found.scenes(9, {"attn_3_1_h2", "attn_3_0_h0"})] == ["attn_3_0_h0", "attn_3_1_h2"]


@pytest.mark.parametrize(
    ("which", "reduce"), [("2", lambda w: w.max(0)), ("2:1", lambda w: w[1]), ("0:3", lambda w: w[3])]
)
def test_a_map_is_one_layer_by_query_and_key(
    made: Made,
    which: str,
    reduce: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    drawn = scenes(made, map=which, queries="all", window=6, step=4)
    layer, _, head = which.partition(":")
    prefix = f"map_l{layer}" + (f"_h{head}" if head else "")
    assert list(drawn) == [f"{prefix}_0_0", f"{prefix}_1_0", f"{prefix}_1_1"]
    expected = reduce(made.weights[int(layer)].astype(np.float32)[:, :10, :10])
    expected[np.triu_indices(10, 1)] = np.nan
    for scene in drawn.values():
        np.testing.assert_array_equal(scene.matrix, expected[np.ix_(scene.rows, scene.columns)])
        assert scene.row_labels == tuple(legible(made.token_text[query]) for query in scene.rows)
        assert scene.column_labels == tuple(legible(made.token_text[column]) for column in scene.columns)
        assert scene.labels[0][0] == ("" if np.isnan(scene.matrix[0, 0]) else f"{scene.matrix[0, 0]:.2f}")
        assert scene.kind == "map"
        assert scene.query is None
        assert scene.final_row is None
    assert [scene.rows for scene in drawn.values()] == [tuple(range(6)), (6, 7, 8, 9), (6, 7, 8, 9)]
    assert headline(drawn[f"{prefix}_1_0"]).startswith(f"layer {layer}   ")
    assert headline(drawn[f"{prefix}_1_0"]).endswith("queries 6–9")


def test_a_map_may_show_prompt_and_generation(made: Made) -> None:
    drawn = scenes(made, map="0", queries="3:9")["map_l0_0_0"]
    assert (drawn.row_boundary, drawn.boundary) == (3, 6)


def test_maps_take_scales_texts_and_heads(made: Made) -> None:
    drawn = scenes(made, map="0", heads="each", scale="drop-sink", text="entropy", queries="all")
    assert list(drawn) == [f"map_l0_0_0_h{head}" for head in range(4)]
    weights = made.weights[0, 2, :10, :10].astype(np.float64)
    mass = drawn["map_l0_0_0_h2"].strip
    assert mass is not None
    np.testing.assert_allclose(mass.values, weights[:, 0], rtol=1e-6)  # token 0 is the only special one
    rest = weights[5, 1:6] / weights[5, 1:6].sum()
    np.testing.assert_allclose(drawn["map_l0_0_0_h2"].matrix[5, 1:6], rest, rtol=1e-5)
    assert drawn["map_l0_0_0_h2"].labels[3][4] == f"{made.lens_entropy[0, 4]:.2f}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": "0,1"}, "expected one layer"),
        ({"map": "7"}, "--map 7 is out of range: there are 3 layers"),
        ({"map": "0:9"}, "there are 4 heads"),
        ({"map": "0:1", "heads": "mean"}, "names the head itself"),
        ({"map": "x"}, "--map 'x' is not understood"),
        ({"scale": "sqrt"}, "expected one of raw, log, rank, drop-sink, value-norm"),
        ({"text": "words"}, "expected one of token, probability, top-k, entropy, next-rank, weight"),
        ({"tokens": "99"}, "--tokens 99 is out of range"),
    ],
)
def test_options_that_cannot_be_used(made: Made, tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        render(made.path, tmp_path / "out", options=RenderOptions(**options))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_picture_says_its_scale_and_text(made: Made) -> None:
    (drawn,) = scenes(made, queries="9", scale="drop-sink", text="probability").values()
    assert "scale: 0 … 1 without first and special tokens, their sum at the side (drop-sink)" in details(drawn)
    assert "text: probability of the lens's first choice" in details(drawn)
    assert drawn.strip is not None
    assert np.isnan(drawn.strip.values[[1, 3]]).all()


@pytest.mark.parametrize(
    "options",
    [{"map": "0", "heads": "each"}, {"heads": "rollout"}, {"scale": "drop-sink"}, {"tokens": "2:", "text": "top-k"}],
)
def test_everything_is_painted_under_its_name(made: Made, tmp_path: Path, options: dict[str, str]) -> None:
    report = render(made.path, tmp_path, options=RenderOptions(**options, dpi=30))  # type: ignore[arg-type]
    expected = {f"{name}.png" for unit in view(made, **options).units for name in view(made, **options).stems(unit)}
    assert {path.name for path in tmp_path.glob("*.png")} == expected
    assert report.count == len(expected)
