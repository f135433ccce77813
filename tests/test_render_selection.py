"""`--queries`, `--layers` and `--heads`: what a text picks, and what it is told when it picks nothing."""

from __future__ import annotations

import numpy as np
import pytest

from attnlens.render.attention.heads import select_heads
from attnlens.render.attention.reduce import maximum, mean, minimum
from attnlens.render.choice.layers import select_rows
from attnlens.render.choice.queries import Timeline, select_queries, stem
from attnlens.schemas.errors import AbsentError, InputError

LINE = Timeline(capture="0000", n_prompt=6, n_token=11, n_row=10)


def test_out_of_range_says_how_many_there_are() -> None:
    with pytest.raises(
        InputError, match=r"--heads 12 is out of range: there are 9 heads \(0 … 8\); or one of max, mean"
    ):
        select_heads("12", 9)
    with pytest.raises(InputError, match=r"--layers 30.*30 layers \(0 … 29\)"):
        select_rows("30", 30)


def test_query_names() -> None:
    assert select_queries("generated", LINE) == (6, 7, 8, 9)
    assert select_queries("prompt", LINE) == (0, 1, 2, 3, 4, 5)
    assert select_queries("all", LINE) == tuple(range(10))
    assert select_queries("-2:", LINE) == (8, 9)
    assert select_queries("4:7", LINE) == (4, 5, 6)


def test_queries_without_rows_are_absent_and_others_do_not_exist() -> None:
    with pytest.raises(AbsentError, match=r"token 10 of capture 0000 has no row.*not fed.*rows 0 … 9"):
        select_queries("10", LINE)
    with pytest.raises(InputError, match=r"--queries 11 is out of range.*or one of generated, prompt, all"):
        select_queries("11", LINE)
    with pytest.raises(InputError, match="selects no query"):
        select_queries("20:30", LINE)
    nothing = Timeline(capture="0002", n_prompt=6, n_token=7, n_row=6)
    with pytest.raises(AbsentError, match=r"0002 has no generated token that was fed.*--queries all"):
        select_queries("generated", nothing)
    with pytest.raises(AbsentError, match="no finished row"):
        select_queries("all", Timeline(capture="0000", n_prompt=6, n_token=6, n_row=0))


def test_names_of_prompt_and_generated_queries_do_not_collide() -> None:
    assert [stem(query, 6) for query in (0, 5, 6, 9)] == ["attn_p0", "attn_p5", "attn_0", "attn_3"]


def test_final_row_follows_the_last_layer() -> None:
    assert select_rows(None, 3) == (0, 1, 2, 3)
    assert select_rows("0:2", 3) == (0, 1)
    assert select_rows("-1", 3) == (2, 3)
    assert select_rows("0,2", 3) == (0, 2, 3)


def test_reductions_skip_heads_without_values_and_keep_layers_without_attention_empty() -> None:
    weights = np.array(
        [[[0.25, 0.5], [0.75, 0.0]], [[0.5, 0.5], [np.nan, np.nan]], np.full((2, 2), np.nan)], np.float32
    )
    np.testing.assert_array_equal(maximum(weights), [[0.75, 0.5], [0.5, 0.5], [np.nan, np.nan]])
    np.testing.assert_array_equal(minimum(weights), [[0.25, 0.0], [0.5, 0.5], [np.nan, np.nan]])
    np.testing.assert_array_equal(mean(weights), [[0.5, 0.25], [0.5, 0.5], [np.nan, np.nan]])
    assert {result.dtype for result in (maximum(weights), minimum(weights), mean(weights))} == {np.dtype(np.float32)}


def test_heads_say_what_they_are() -> None:
    assert select_heads("max", 9).label == "max over 9 heads"
    assert select_heads("0,3,5-7", 9).label == "max over heads 0, 3, 5–7"
    assert select_heads("4", 9).label == "head 4 of 9"
    assert select_heads("5:", 9).heads == (5, 6, 7, 8)
