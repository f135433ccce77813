"""`--heads` and `--scale`: each reduction, choice and scale against its formula, by other means."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import attnlens
from attnlens.render.attention import rollout as rollout_module
from attnlens.render.attention import source as source_module
from attnlens.render.attention.heads import each_head, kv_group, select_heads
from attnlens.render.attention.reduce import REDUCE, Floats, Mask, entropy, highest, induction, lowest, median
from attnlens.render.attention.rollout import Rollout, mixing
from attnlens.render.attention.row import Row
from attnlens.render.attention.scales import SCALES, drop_sink, log, rank, select_scale, sink_mass, value_norm
from attnlens.render.attention.source import Source
from attnlens.schemas.errors import AbsentError, InputError, StoreError
from attnlens.schemas.metadata import LayerInfo
from render_store import Made, make

WEIGHTS = hnp.arrays(np.float32, (2, 5, 7), elements=st.floats(0, 1, width=32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("made") / "run.zarr"
    norms = np.random.default_rng(9).random((3, 4, 11)).astype(np.float32) + np.float32(0.1)
    return make(path, without_attention=(1,), n_kv_head=2, ids=[0, 5, 7, 5, 0, 8, 7, 5, 9, 5, 7], value_norm=norms)


def drawn(made: Made, query: int, heads: str, scale: str = "raw") -> tuple[Floats, Floats | None]:
    capture = attnlens.open(made.path)[0]
    model = capture.metadata.model
    chosen = select_heads(heads, model.n_head, model.layers)
    source = Source(capture, layers=(0, 1, 2), heads=[chosen], scale=select_scale(scale))
    return source.rows([query])[0][0]


def stored(made: Made, query: int) -> Floats:
    return made.weights[:, :, query, : query + 1].astype(np.float32)


def row(query: int, *, sinks: tuple[int, ...] = (), norms: Floats | float = 1.0) -> Row:
    mask = np.zeros(query + 1, np.bool_)
    mask[list(sinks)] = True
    return Row(
        query=query,
        layers=(0, 1),
        ids=np.arange(query + 1, dtype=np.int32),
        sinks=mask,
        norms=norms,
    )


@given(WEIGHTS, hnp.arrays(np.bool_, (2, 5)))
def test_reductions_are_numpy_s_over_the_heads_that_are_there(weights: Floats, gone: Mask) -> None:
    weights = np.where(gone[:, :, None], np.float32(np.nan), weights)
    expected: dict[str, Any] = {"max": np.nanmax, "mean": np.nanmean, "min": np.nanmin, "median": np.nanmedian}
    for name, reduce in REDUCE.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = expected[name](weights.astype(np.float64), axis=1)
        np.testing.assert_allclose(reduce(weights), wanted, rtol=1e-6, atol=1e-30)
        assert reduce(weights).dtype == np.float32


def test_median_of_an_even_number_is_the_middle_of_the_two_in_the_middle() -> None:
    np.testing.assert_array_equal(median(np.array([[[0.0], [0.25], [0.75], [1.0]]], np.float32)), [[0.5]])


@given(WEIGHTS)
def test_entropy_is_the_sum_over_keys(weights: Floats) -> None:
    expected = [[-sum(p * np.log(p) for p in head if p > 0) for head in layer] for layer in weights.astype(np.float64)]
    np.testing.assert_allclose(entropy(weights), expected, rtol=1e-5, atol=1e-6)


def test_entropy_of_one_token_is_0_and_of_n_alike_is_log_n() -> None:
    weights = np.array([[[0, 1, 0, 0], [0.25] * 4, [np.nan] * 4]], np.float32)
    np.testing.assert_allclose(entropy(weights), [[0, np.log(4), np.nan]], rtol=1e-6)


@given(WEIGHTS, st.lists(st.integers(-1, 2), min_size=7, max_size=7))
def test_induction_is_attention_behind_earlier_occurrences(weights: Floats, ids: list[int]) -> None:
    keys = [key for key in range(1, 7) if ids[key - 1] == ids[6] != -1]
    found = induction(weights, np.array(ids, np.int32))
    if not keys:
        assert np.isnan(found).all()
    else:
        np.testing.assert_allclose(found, sum(weights[:, :, key].astype(np.float64) for key in keys), rtol=1e-5)


def test_an_induction_head_scores_1() -> None:
    weights = np.zeros((1, 2, 4), np.float32)
    weights[0, 0, 1], weights[0, 1, 3] = 1, 1  # A B … A: head 0 looks at B, head 1 at A itself
    np.testing.assert_array_equal(induction(weights, np.array([4, 6, 2, 4], np.int32)), [[1, 0]])


def test_of_equal_scores_the_first_heads_are_taken_and_never_a_head_that_is_not_there() -> None:
    scores = np.array([[1, 0, 0, np.nan], [np.nan, np.nan, 3, 2]], np.float32)
    np.testing.assert_array_equal(lowest(scores, 2), [[False, True, True, False], [False, False, True, True]])
    np.testing.assert_array_equal(highest(scores, 1), [[True, False, False, False], [False, False, True, False]])
    np.testing.assert_array_equal(lowest(scores, 4), ~np.isnan(scores))


@pytest.mark.parametrize("query", [2, 9])
def test_lists_may_name_their_reduction(made: Made, query: int) -> None:
    weights = stored(made, query)
    for text, expected in {
        "1,3": weights[:, [1, 3]].max(1),
        "1,3:min": weights[:, [1, 3]].min(1),
        "0:3:mean": weights[:, :3].mean(1, dtype=np.float64),
        "0:3": weights[:, :3].max(1),
        "::2:median": np.median(weights[:, ::2], axis=1),
        "median": np.median(weights, axis=1),
        "2:max": weights[:, 2],
    }.items():
        np.testing.assert_allclose(drawn(made, query, text)[0], expected, rtol=1e-6, err_msg=text)


def test_kv_groups_follow_the_layers_table(made: Made) -> None:
    weights = stored(made, 8)
    np.testing.assert_array_equal(drawn(made, 8, "kv-group:0")[0], weights[:, :2].max(1))
    np.testing.assert_allclose(drawn(made, 8, "kv-group:1:mean")[0], weights[:, 2:].mean(1), rtol=1e-6)
    with pytest.raises(InputError, match=r"no key/value head 2, the layers have up to 2 \(0 … 1\)"):
        drawn(made, 8, "kv-group:2")


def test_layers_of_other_shapes_have_groups_of_their_own() -> None:
    def layer(n_head: int, n_kv_head: int) -> LayerInfo:
        return LayerInfo(
            index=0, path="", kind="full", n_head=n_head, n_kv_head=n_kv_head, key_features=1, value_features=1
        )

    layers = [layer(8, 2), layer(4, 4)]
    assert [list(kv_group(one, 1)) for one in layers] == [[4, 5, 6, 7], [1]]
    assert [list(kv_group(one, 3)) for one in layers] == [[], [3]]
    chosen = select_heads("kv-group:1", 8, layers)
    assert chosen.heads == (1, 4, 5, 6, 7)
    assert chosen.label == "max over heads 1, 4–7 (key/value head 1)"
    assert chosen.choose is not None
    mask = chosen.choose(np.ones((2, 5, 3), np.float32), row(2))
    np.testing.assert_array_equal(mask, [[False, True, True, True, True], [True, False, False, False, False]])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_top_heads_by_entropy_are_the_most_focused(made: Made, count: int) -> None:
    weights = stored(made, 9)
    values = drawn(made, 9, f"top:{count}:entropy")[0]
    for layer in (0, 2):
        focus = [-(head[head > 0] * np.log(head[head > 0])).sum() for head in weights[layer]]
        np.testing.assert_array_equal(values[layer], weights[layer, np.argsort(focus)[:count]].max(0))
    assert np.isnan(values[1]).all()


def test_top_heads_by_induction(made: Made) -> None:
    weights = stored(made, 9)  # token 5, which was at 1, 3 and 7 before
    values = drawn(made, 9, "top:2:induction:mean")[0]
    for layer in (0, 2):
        best = np.argsort(-weights[layer][:, [2, 4, 8]].sum(1))[:2]
        np.testing.assert_allclose(values[layer], weights[layer, best].mean(0), rtol=1e-6)
    assert np.isnan(drawn(made, 8, "top:2:induction")[0]).all()  # token 9 is new


def test_every_head_on_its_own(made: Made) -> None:
    capture = attnlens.open(made.path)[0]
    source = Source(capture, layers=(2, 0), heads=each_head(4), scale=select_scale("raw"))
    found = source.rows([7, 9])
    for place, query in enumerate((7, 9)):
        for head in range(4):
            np.testing.assert_array_equal(found[place][head][0], stored(made, query)[[2, 0], head])
    assert [heads.suffix for heads in each_head(4)] == ["_h0", "_h1", "_h2", "_h3"]


def rolled_out(weights: Floats) -> Floats:
    """By full matrices, float64: (layer, query, key)."""
    found, below = [], np.eye(weights.shape[-1])
    for layer in weights.astype(np.float64):
        mixed = np.nan_to_num(layer.mean(0)) + np.eye(weights.shape[-1])
        below = mixed / mixed.sum(-1, keepdims=True) @ below
        found.append(below)
    return np.stack(found)


@pytest.mark.parametrize("budget", [1, 700, 2**25])
def test_rollout_is_the_product_of_all_layers_whatever_the_blocks(
    made: Made, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_module, "BUDGET", budget)
    n_row = 10
    weights = np.nan_to_num(made.weights.astype(np.float32)[:, :, :n_row, :n_row])
    weights[1] = np.nan
    expected = rolled_out(weights)
    capture = attnlens.open(made.path)[0]
    source = Source(capture, layers=(0, 2), heads=[select_heads("rollout", 4)], scale=select_scale("raw"))
    for query in (3, 9, 0):
        np.testing.assert_allclose(source.rows([query])[0][0][0], expected[[0, 2], query, : query + 1], rtol=1e-4)
    np.testing.assert_allclose(source.rows([9])[0][0][0].sum(1), 1, rtol=1e-5)


def test_a_layer_without_attention_mixes_nothing() -> None:
    np.testing.assert_array_equal(mixing(np.full((2, 4), np.nan, np.float32), 1), np.eye(4)[1:3])


def test_rollout_says_what_it_would_need() -> None:
    with pytest.raises(InputError, match=r"--heads rollout: 100000 tokens × 32 layers need 1192.1 GiB.*limit is 8 GiB"):
        Rollout(lambda start, stop: np.zeros((1, 1, 1), np.float32), 32, 100_000)


def test_log_has_a_floor() -> None:
    values = np.array([[0, 1e-5, 1e-3, 0.5, 1, np.nan]], np.float32)
    np.testing.assert_allclose(log(values), [[-4, -4, -3, np.log10(0.5), 0, np.nan]], rtol=1e-6)


@given(hnp.arrays(np.float32, (2, 6), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5])))
def test_rank_is_the_mean_place_among_the_keys(values: Floats) -> None:
    expected = [[(sum(b < a for b in line) + (sum(b == a for b in line) - 1) / 2) / 5 for a in line] for line in values]
    np.testing.assert_allclose(rank(values), expected, rtol=1e-6)


def test_rank_of_one_key_and_of_none() -> None:
    np.testing.assert_array_equal(rank(np.array([[0.3], [np.nan]], np.float32)), [[0.5], [np.nan]])
    np.testing.assert_array_equal(
        rank(np.array([[0.3, 0.1, np.nan], [np.nan] * 3, [np.nan, 2, np.nan]], np.float32)),
        [[1, 0, np.nan], [np.nan] * 3, [np.nan, 0.5, np.nan]],
    )


@settings(max_examples=50)
@given(WEIGHTS)
def test_dropping_sinks_leaves_a_distribution_over_the_rest(weights: Floats) -> None:
    sinks = (0, 3)
    rest = [1, 2, 4, 5, 6]
    found, mass = drop_sink(weights, row(6, sinks=sinks)), sink_mass(weights, row(6, sinks=sinks))
    assert np.isnan(found[:, :, list(sinks)]).all()
    np.testing.assert_allclose(mass, weights[:, :, 0] + weights[:, :, 3], rtol=1e-5)
    left = weights[:, :, rest].sum(-1)
    for layer, head in np.ndindex(2, 5):
        if left[layer, head] >= 0.011:
            np.testing.assert_allclose(found[layer, head, rest].sum(), 1, rtol=1e-4)
            again = found[layer, head, rest] * left[layer, head]
            np.testing.assert_allclose(again, weights[layer, head, rest], rtol=1e-4, atol=1e-30)
        elif left[layer, head] < 0.009:
            assert np.isnan(found[layer, head]).all()


def test_dropped_sinks_are_in_the_strip(made: Made) -> None:
    values, mass = drawn(made, 9, "0,1:mean", "drop-sink")
    weights = stored(made, 9)[:, :2].astype(np.float64)
    rest = [1, 2, 3, 5, 6, 7, 8, 9]  # tokens 0 and 4 are special
    expected = (weights[:, :, rest] / weights[:, :, rest].sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(values[:, rest], expected, rtol=1e-5)
    assert mass is not None
    np.testing.assert_allclose(mass, weights[:, :, [0, 4]].sum(-1).mean(1), rtol=1e-5)


def test_value_norm_is_the_share_of_what_is_moved(made: Made) -> None:
    norms = np.random.default_rng(9).random((3, 4, 11)).astype(np.float32) + np.float32(0.1)
    moved = stored(made, 9).astype(np.float64) * norms[:, :, :10]
    share = moved / moved.sum(-1, keepdims=True)
    np.testing.assert_allclose(drawn(made, 9, "max", "value-norm")[0], share.max(1), rtol=1e-5)
    np.testing.assert_allclose(drawn(made, 9, "1,2:mean", "value-norm")[0], share[:, 1:3].mean(1), rtol=1e-5)
    np.testing.assert_allclose(drawn(made, 9, "kv-group:1", "value-norm")[0], share[:, 2:].max(1), rtol=1e-5)
    nothing = value_norm(np.ones((1, 1, 2), np.float32), row(1, norms=np.zeros((1, 1, 2), np.float32)))
    assert np.isnan(nothing).all()


def test_scales_after_the_reduction(made: Made) -> None:
    mean = stored(made, 9).mean(1, dtype=np.float64)[[0, 2]]
    np.testing.assert_allclose(
        drawn(made, 9, "0:4:mean", "log")[0][[0, 2]], np.log10(np.maximum(mean, 1e-4)), rtol=1e-4
    )
    assert {name: scale.range for name, scale in SCALES.items() if scale.range != (0, 1)} == {"log": (-4, 0)}


def test_what_is_not_stored_is_said_before_anything_is_drawn(made: Made, tmp_path: Path) -> None:
    from attnlens.render.options import RenderOptions
    from attnlens.render.views.open import open_view

    plain = make(tmp_path / "plain.zarr")
    with pytest.raises(AbsentError, match=r"--scale value-norm: capture 0000 holds no lengths of value vectors"):
        open_view(attnlens.open(plain.path)[0], RenderOptions(scale="value-norm"))
    odd = make(tmp_path / "odd.zarr", value_norm=np.ones((3, 2, 11), np.float32))
    with pytest.raises(StoreError, match="0000/value_norm: axis head has 2 entries, expected 4"):
        open_view(attnlens.open(odd.path)[0], RenderOptions(scale="value-norm"))
    with pytest.raises(InputError, match="rollout has no value vectors"):
        open_view(attnlens.open(made.path)[0], RenderOptions(scale="value-norm", heads="rollout"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top:3", "expected top:N:entropy or top:N:induction"),
        ("top:0:entropy", "expected 1 to 4 heads a layer"),
        ("top:5:entropy", "expected 1 to 4 heads a layer"),
        ("top:x:entropy", "with a number N"),
        ("top:2:entropy:mode", "expected top:N:entropy or top:N:induction"),
        ("kv-group:", "with a number N"),
        ("kv-group:٣", "with a number N"),
        ("max:mean", "is not understood"),
        ("", "or one of max, mean, min, median, LIST:mean, kv-group:N"),
    ],
)
def test_heads_that_are_not_understood(text: str, message: str) -> None:
    with pytest.raises(InputError, match="--heads") as caught:
        select_heads(text, 4, ())
    assert message in str(caught.value)


def test_labels_name_reduction_and_heads() -> None:
    for text, label in {
        "median": "median over 9 heads",
        "0,3:mean": "mean over heads 0, 3",
        "top:1:entropy": "the head of lowest entropy in each layer",
        "top:3:induction:mean": "mean over the 3 heads of highest induction score in each layer",
        "rollout": "rollout of the mean over heads",
    }.items():
        assert select_heads(text, 9).label == label


@pytest.mark.parametrize("scale", ["raw", "drop-sink", "value-norm", "rank"])
def test_large_rows_are_read_in_groups_of_layers(made: Made, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = ("0:4:mean", "kv-group:1", "top:2:entropy", "rollout" if scale != "value-norm" else "min")
    whole = [drawn(made, 9, text, scale) for text in heads]
    monkeypatch.setattr(source_module, "BUDGET", 1)
    for text, (values, mass) in zip(heads, whole, strict=True):
        again = drawn(made, 9, text, scale)
        np.testing.assert_array_equal(again[0], values)
        if mass is not None:
            np.testing.assert_array_equal(again[1], mass)
