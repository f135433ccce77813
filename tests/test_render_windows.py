"""Windows against the arithmetic of the picture they come from: start every `step`, move the last one back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens.render.choice.windows import windows
from attnlens.schemas.errors import InputError

QUERY, WINDOW, STEP = st.integers(0, 400), st.integers(1, 80), st.integers(1, 90)


@given(QUERY, WINDOW, STEP)
def test_windows_walk_from_column_0_to_the_query(query: int, window: int, step: int) -> None:
    found = windows(query, window, step)
    assert all(part.columns == tuple(range(part.columns[0], part.columns[-1] + 1)) for part in found)
    assert {len(part.columns) for part in found} == {min(window, query + 1)}
    assert found[0].columns[0] == 0
    assert found[-1].columns[-1] == query
    starts = [part.columns[0] for part in found]
    assert starts[:-1] == [step * number for number in range(len(starts) - 1)]
    assert all(low < high <= low + step for low, high in itertools.pairwise(starts))


@given(QUERY, WINDOW, st.data())
def test_every_column_is_in_a_window(query: int, window: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, window))
    assert {column for part in windows(query, window, step) for column in part.columns} == set(range(query + 1))


@given(QUERY, WINDOW, STEP, st.sets(st.integers(0, 400), min_size=1))
def test_chosen_tokens_are_windowed_as_if_they_were_all(query: int, window: int, step: int, chosen: set[int]) -> None:
    tokens = sorted(chosen)
    there = [token for token in tokens if token <= query]
    found = windows(query, window, step, tokens)
    if not there:
        assert found == ()
        return
    places = windows(len(there) - 1, window, step)
    assert [part.columns for part in found] == [tuple(there[place] for place in part.columns) for part in places]
    assert [part.suffix for part in found] == [part.suffix for part in places]


@given(QUERY, WINDOW, STEP)
def test_numbers_are_those_of_the_original(query: int, window: int, step: int) -> None:
    columns = query + 1
    expected: list[tuple[int, str]] = []
    if window < columns:
        for start in range(0, columns - window + step, step):
            expected.append((min(start, columns - window), f"_{len(expected)}"))
    else:
        expected.append((0, ""))
    assert [(part.columns[0], part.suffix) for part in windows(query, window, step)] == expected


def test_one_picture_when_the_columns_fit() -> None:
    assert [(part.columns[0], part.columns[-1], part.suffix) for part in windows(31)] == [(0, 31, "")]
    assert [(part.columns[0], part.columns[-1], part.suffix) for part in windows(32)] == [(0, 31, "_0"), (1, 32, "_1")]
    assert [part.columns[0] for part in windows(41)] == [0, 5, 10]
    assert [part.columns[0] for part in windows(42)] == [0, 5, 10, 11]


@pytest.mark.parametrize(
    ("window", "step", "named"), [(0, 5, "--window 0"), (-3, 5, "--window -3"), (8, 0, "--step 0")]
)
def test_window_and_step_below_one_are_refused(window: int, step: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        windows(10, window, step)
