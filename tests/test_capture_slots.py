"""When rows are read together must not show in a store: neither in numbers nor in the order of the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnlens.capture import capture, readings
from attnlens.capture.slots import GROUP_ROWS, Slots, ends_group, spread
from batch_runs import arrays, model
from families import byte_tokenizer


@given(st.integers(0, 40), st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_row_keeps_its_place_whenever_rows_are_flushed(origin: int, hurried: list[bool]) -> None:
    def places(flushes: list[bool]) -> list[tuple[int, int]]:
        slots, found, first = Slots(), [], origin
        for number, now in enumerate(flushes):
            row = origin + number
            if now or ends_group(row) or number == len(flushes) - 1:
                size, at = slots.place(first, row + 1 - first)
                assert at.stop <= size <= GROUP_ROWS
                found += [(size, place) for place in range(at.start, at.stop)]
                first = row + 1
        return found

    assert places(hurried) == places([False] * len(hurried))


def test_spread() -> None:
    rows = torch.arange(6.0).reshape(2, 3) + 1
    assert spread(rows, 5, slice(1, 3)).tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]]
    assert spread(rows, 4, slice(1, 4), axis=1)[:, 1:].equal(rows)
    assert spread(rows, 2, slice(0, 2)) is rows


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_the_clock_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    options: dict[str, Any] = {"raw": True, "temperature": 0, "max_new_tokens": 21, "track": ["a"]}

    def run(name: str) -> dict[str, Any]:
        capture(model(), byte_tokenizer(), "The quick brown", tmp_path / name, **options)
        return arrays(tmp_path / name, "0000")

    calm = run("calm.zarr")
    monkeypatch.setattr(readings, "WAITING_SECONDS", seconds)
    hurried = run("hurried.zarr")
    assert calm.keys() == hurried.keys()
    for name in calm:
        np.testing.assert_array_equal(hurried[name], calm[name], err_msg=name)
