"""What `verify` says of entropies that the top k probabilities do not allow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens.cli
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store.entropy import entropy_bounds
from attnlens.store.verify import verify
from store_sample import Sample


def entropy_of(p: Any) -> Any:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)


@settings(max_examples=200, deadline=None)
@given(
    size=st.sampled_from([2, 5, 6, 50, 20000]),
    top_k=st.sampled_from([1, 2, 5]),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 5.0, 30.0]),
    seed=st.integers(0, 10000),
)
def test_every_distribution_is_between_the_bounds(size: int, top_k: int, spread: float, seed: int) -> None:
    z = np.random.default_rng(seed).normal(0, spread, (4, size))
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    top = -np.sort(-p, axis=1)[:, : min(top_k, size)]
    lowest, highest = entropy_bounds(top.astype(np.float32), size)
    stored = entropy_of(p).astype(np.float32)
    assert (lowest <= stored).all()
    assert (stored <= highest).all()
    assert (highest - lowest < 1e-4).all() or min(top_k, size) < size


@pytest.mark.parametrize("top", [[0.5], [0.3, 0.2], [0.6, 0.1, 0.1], [0.9, 0.05], [0.25, 0.25, 0.25], [0.4, 0.35]])
def test_the_bounds_are_reached(top: list[float]) -> None:
    """By distributions written out: the rest in as few tokens as may be, and in all alike."""
    size, k, rest = 40, len(top), 1 - sum(top)
    few = [*top, *[top[-1]] * int(rest / top[-1] + 1e-9)]
    few += [max(0.0, 1 - sum(few))]
    lowest, highest = entropy_bounds(top, size)
    np.testing.assert_allclose(lowest, entropy_of(np.array(few)), atol=1e-4)
    np.testing.assert_allclose(highest, entropy_of(np.array(top + [rest / (size - k)] * (size - k))), atol=1e-4)


def written(path: Path, entropy: float, **changes: Any) -> None:
    """A sample whose entropy at depth 1, token 5 is `entropy` times the right one."""
    sample = Sample()
    sample.lens_arrays["lens_entropy"][1, 5] *= entropy
    values = {**sample.metadata().model_dump(), **changes}
    metadata = CaptureMetadata.model_validate(values)
    sample.metadata = lambda **_: metadata  # type: ignore[method-assign]
    sample.write(path)


MARK = {"name": "probe: lens entropy", "passed": True, "value": 1e-7, "limit": 1e-4}


@pytest.mark.parametrize("entropy", [0.5, 1.1])
def test_an_impossible_entropy_is_a_note_for_earlier_writers(
    entropy: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "run.zarr", entropy)
    report = verify(tmp_path / "run.zarr")
    assert report.passed
    (note,) = report.notes
    assert note.where == "0000/lens_entropy/c/0/0"
    assert "depth 1, token 5, " in note.message
    assert "not an entropy that the top 3 probabilities allow" in note.message
    monkeypatch.setattr(sys, "argv", ["lens", "verify", "--quiet", str(tmp_path / "run.zarr")])
    with pytest.raises(SystemExit) as left:
        attnlens.cli.main()
    assert not left.value.code
    shown = capsys.readouterr()
    assert shown.out.startswith("ok: ")
    assert shown.err.startswith("note: 0000/lens_entropy/c/0/0: depth 1, token 5, ")


def test_an_impossible_entropy_is_an_error_where_the_writer_checked_it(tmp_path: Path) -> None:
    written(tmp_path / "run.zarr", 0.5, self_checks=[MARK])
    report = verify(tmp_path / "run.zarr")
    (problem,) = report.problems
    assert "not an entropy that the top 3 probabilities allow" in problem.message
    assert not report.notes


def test_a_right_entropy_is_neither(tmp_path: Path) -> None:
    written(tmp_path / "run.zarr", 1.0, self_checks=[MARK])
    report = verify(tmp_path / "run.zarr")
    assert not report.problems
    assert not report.notes
