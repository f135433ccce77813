"""The numbers of a lens reading against their definitions, in float64 by numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlens.capture import capture
from attnlens.capture.lenses import blocked
from attnlens.capture.lenses.blocked import BLOCK_COLUMNS, WIDEST_COLUMNS, can_walk, read_through
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.lenses.readout import Readout, read_logits
from attnlens.capture.models import load


def expected(logits: Any, following: list[int], top_k: int) -> dict[str, Any]:
    """The definitions."""
    z = np.asarray(logits, dtype=np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(axis=1)
    order = np.argsort(-z, axis=1, kind="stable")[:, :top_k]
    rows = np.arange(len(z))
    known = np.asarray(following) >= 0
    aim = np.where(known, following, 0)
    return {
        "token": order,
        "probability": np.take_along_axis(p, order, axis=1),
        "entropy": entropy,
        "next_rank_range": [
            np.where(known, (z > z[rows, aim][:, None] + slack).sum(axis=1), -1) for slack in (2e-5, -2e-5)
        ],
        "next_probability": np.where(known, p[rows, aim], np.nan),
    }


def check(read: Readout, truth: dict[str, Any], atol: float = 1e-5) -> None:
    # Tokens whose probabilities are equal to within rounding may come in any order, and so may ranks among them.
    clear = np.diff(truth["probability"], axis=1, append=-1) < -1e-5
    clear &= np.diff(truth["probability"], axis=1, prepend=2) < -1e-5
    clear[:, -1] = False  # the first token left out is not in this table
    np.testing.assert_array_equal(read.token.numpy()[clear], truth["token"][clear])
    np.testing.assert_allclose(read.probability.numpy(), truth["probability"], atol=atol)
    check_entropy(read.entropy.numpy(), truth["entropy"])
    low, high = truth["next_rank_range"]
    assert ((low <= read.next_rank.numpy()) & (read.next_rank.numpy() <= high)).all()
    np.testing.assert_allclose(read.next_probability.numpy(), truth["next_probability"], atol=atol)


def check_entropy(found: Any, exact: Any) -> None:
    """Within 1e-5 of it or 1e-6 nat, whichever is more."""
    np.testing.assert_array_less(np.abs(found - exact), np.maximum(1e-6, 1e-5 * exact))


def head_of(size: int, *, bias: bool, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    head = nn.Linear(24, size, bias=bias).requires_grad_(requires_grad=False)
    head.weight.mul_(8)
    return head


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([3, 17, BLOCK_COLUMNS - 1, BLOCK_COLUMNS, BLOCK_COLUMNS + 1, 2 * BLOCK_COLUMNS + 77]),
    rows=st.integers(1, 9),
    top_k=st.integers(1, 7),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 30.0]),
    seed=st.integers(0, 1000),
)
def test_both_ways_to_read_give_the_defined_numbers(
    size: int, rows: int, top_k: int, bias: bool, scale: float, softcap: float | None, seed: int
) -> None:
    head = head_of(size, bias=bias, seed=seed)
    stream = torch.randn(rows, 24)
    logits = head(stream) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    following = torch.randint(-1, size, (rows,))
    truth = expected(logits, following.tolist(), min(top_k, size))
    check(read_logits(logits, following, top_k), truth)
    assert can_walk(head)
    check(read_through(stream, head, following, top_k, scale=scale, softcap=softcap), truth)


LOGITS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "random": lambda rng, shape: rng.normal(0, rng.uniform(0.1, 40), shape),
    "nearly uniform": lambda rng, shape: rng.normal(0, 1e-3, shape),
    "nearly sure": lambda rng, shape: np.eye(*shape) * rng.uniform(5, 40) + rng.normal(0, 0.5, shape),
    "two alike": lambda rng, shape: np.eye(*shape) * 30 + np.eye(*shape, k=1) * rng.uniform(15, 30),
    "a long tail": lambda rng, shape: -rng.exponential(rng.uniform(1, 60), shape),
}


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(list(LOGITS)),
    offset=st.sampled_from([0.0, 140.0, -170.0, 1e4, -1e4]),
    size=st.sampled_from([5, BLOCK_COLUMNS, 3 * BLOCK_COLUMNS + 77, 20 * WIDEST_COLUMNS]),
    ruled_out=st.sampled_from([0.0, 0.5, 0.9]),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    softcap=st.sampled_from([None, 30.0]),
    seed=st.integers(0, 10000),
)
def test_entropy_is_exact_however_large_the_logits_are(
    kind: str, offset: float, size: int, ruled_out: float, scale: float, softcap: float | None, seed: int
) -> None:
    """The rows that are read are unit vectors, so that both ways see the very logits that numpy does."""
    rng = np.random.default_rng(seed)
    head = nn.Linear(5, size, bias=ruled_out > 0).requires_grad_(requires_grad=False)
    head.weight.copy_(torch.from_numpy(LOGITS[kind](rng, (5, size)) + offset).T)
    if ruled_out:
        head.bias.copy_(torch.where(torch.from_numpy(rng.random(size) < ruled_out), -torch.inf, 0.0))
        head.bias[0] = 0
    stream, following = torch.eye(5), torch.zeros(5, dtype=torch.int64)
    logits = head(stream).mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    z = logits.numpy().astype(np.float64)
    d = z - z.max(axis=1, keepdims=True)
    p = np.exp(d) / np.exp(d).sum(axis=1, keepdims=True)
    exact = np.log(np.exp(d).sum(axis=1)) - (p * np.where(p > 0, d, 0)).sum(axis=1)
    walked = read_through(stream, head, following, 5, scale=scale, softcap=softcap)
    for read in (walked, read_logits(logits, following, 5)):
        check_entropy(read.entropy.numpy(), exact)
        np.testing.assert_allclose(read.probability.numpy(), -np.sort(-p, axis=1)[:, :5], rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(read.next_probability.numpy(), p[:, 0], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("size", [1000, 20000])
@pytest.mark.parametrize("height", [3.0, 9.0, 14.0, 17.3, 20.0])
def test_a_long_tail_does_not_drown_in_the_peak(size: int, height: float) -> None:
    """Added to 1 in float32, numbers below 6e-8 are lost, however many there are."""
    head = nn.Linear(2, size, bias=False).requires_grad_(requires_grad=False)
    head.weight.zero_()[size // 2, 0] = height
    head.weight[[0, size - 1], 1] = height
    stream, following = torch.eye(2), torch.zeros(2, dtype=torch.int64)
    tail = (size - 1) * np.exp(-height), (size - 2) * np.exp(-height)
    exact = [np.log(n + rest) + height * rest / (n + rest) for n, rest in zip((1, 2), tail, strict=True)]
    for read in (
        read_through(stream, head, following, 5, scale=1.0, softcap=None),
        read_logits(head(stream), following, 5),
    ):
        check_entropy(read.entropy.numpy(), np.array(exact))


@pytest.mark.slow
def test_entropy_of_smollm2_is_exact_at_every_depth(tmp_path: Path) -> None:
    """Its logits reach 170 at depth 0, where the residual is the embedding."""
    loaded = load("smollm2-135m", dtype="float32", device="cpu")
    path = tmp_path / "run.zarr"
    ids = [1, 9690, 8182, 15590, 44710]  # <|im_start|>, "system", " Face", " bytes", " Nairobi"
    capture(loaded.model, loaded.tokenizer, ids, path, max_new_tokens=0, residuals=True)
    data: Any = zarr.open_group(path, mode="r")["0000"]
    np.testing.assert_allclose(data["lens_entropy"][0, 3:], [0.0075020, 0.0026235], atol=1e-6)
    stream = torch.from_numpy(data["residual"][:])
    with torch.no_grad():
        for depth, found in enumerate(data["lens_entropy"][:]):
            z = loaded.model.lm_head(loaded.model.model.norm(stream[depth])).numpy().astype(np.float64)
            d = z - z.max(axis=1, keepdims=True)
            w = np.exp(d)
            check_entropy(found, np.log(w.sum(axis=1)) - (w * d).sum(axis=1) / w.sum(axis=1))


def test_tokens_that_are_ruled_out_count_nothing() -> None:
    head = head_of(2000, bias=True, seed=1)
    head.bias[100:1900] = -torch.inf
    stream = torch.randn(4, 24)
    following = torch.tensor([3, 1950, -1, 500])
    truth = expected(head(stream), following.tolist(), 5)
    check(read_logits(head(stream), following, 5), truth)
    check(read_through(stream, head, following, 5, scale=1.0, softcap=None), truth)


def test_tracked_tokens_have_their_defined_numbers() -> None:
    head = head_of(500, bias=True, seed=6)
    stream = torch.randn(9, 24)
    tracked = torch.tensor([7, 499, 0])
    lens = LogitLens(paths=("head",), modules=(head,), vocabulary_size=500)
    read = lens.read(stream, torch.full((9,), -1), 2, tracked)
    z = head(stream).numpy().astype(np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(read.tracked_probability.numpy(), p[:, [7, 499, 0]], atol=1e-5)
    np.testing.assert_array_equal(read.tracked_rank.numpy(), (z[:, None] > z[:, [7, 499, 0], None]).sum(axis=2))


def test_a_sure_prediction_has_no_entropy() -> None:
    logits = torch.full((1, 50), -200.0)
    logits[0, 7] = 200.0
    read = read_logits(logits, torch.tensor([7]), 2)
    assert float(read.entropy) == 0.0
    assert float(read.next_probability) == 1.0


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk of many blocks, parts and runs over a small vocabulary."""
    monkeypatch.setattr(blocked, "BLOCK_COLUMNS", 16)
    monkeypatch.setattr(blocked, "WIDEST_COLUMNS", 16)
    monkeypatch.setattr(blocked, "PART_COLUMNS", 4)
    monkeypatch.setattr(blocked, "BLOCKS_KEPT", 3)


@pytest.mark.parametrize("size", [15, 16, 17, 48, 49, 500])
@pytest.mark.parametrize("top_k", [1, 5, 30])
@pytest.mark.usefixtures("small_blocks")
def test_many_blocks_are_put_together(size: int, top_k: int) -> None:
    head = head_of(size, bias=size % 2 == 0, seed=size)
    stream, following = torch.randn(33, 24), torch.randint(-1, size, (33,))
    read = read_through(stream, head, following, top_k, scale=1.0, softcap=None)
    check(read, expected(head(stream), following.tolist(), min(top_k, size)))


@pytest.mark.parametrize("doubtful", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_ranks_are_counted_by_the_very_logits(doubtful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small whole numbers, whose products are exact and tie all the time; and a product that sums in another order."""
    if doubtful:
        own = blocked._Product.own
        monkeypatch.setattr(blocked._Product, "own", lambda self, *args: own(self, *args) + 1.5)
    torch.manual_seed(5)
    head = nn.Linear(24, 300, bias=False).requires_grad_(requires_grad=False)
    head.weight.copy_(torch.randint(-2, 3, (300, 24)))
    stream, following = torch.randint(-2, 3, (50, 24)).float(), torch.randint(0, 300, (50,))
    logits = (stream @ head.weight.T).numpy()
    tracked = torch.tensor([299, 0, 7])
    read = read_through(stream, head, following, 5, tracked, scale=1.0, softcap=None)
    aim = logits[np.arange(50), following.numpy()]
    np.testing.assert_array_equal(read.next_rank.numpy(), (logits > aim[:, None]).sum(axis=1))
    ranks = (logits[:, None] > logits[:, tracked.numpy(), None]).sum(axis=2)
    np.testing.assert_array_equal(read.tracked_rank.numpy(), ranks)
    np.testing.assert_array_equal(
        np.take_along_axis(logits, read.token.numpy(), axis=1), -np.sort(-logits, axis=1)[:, :5]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_heads_are_read_as_they_are(dtype: torch.dtype) -> None:
    head = head_of(3000, bias=False, seed=2).to(dtype)
    stream = torch.randn(6, 24).to(dtype)
    following = torch.tensor([0, 5, 10, 2999, -1, 7])
    truth = expected(head(stream).float(), following.tolist(), 3)
    lens = LogitLens(paths=("head",), modules=(head,), vocabulary_size=3000)
    read = lens.read(stream, following, 3)
    np.testing.assert_allclose(read.probability.numpy(), truth["probability"], atol=1e-6)
    np.testing.assert_allclose(read.next_probability.numpy(), truth["next_probability"], atol=1e-6)
    low, high = truth["next_rank_range"]
    assert ((low <= read.next_rank.numpy()) & (read.next_rank.numpy() <= high)).all()


def test_a_head_with_a_hook_is_called_not_copied() -> None:
    head = head_of(40, bias=False, seed=3)
    lens = LogitLens(paths=("head",), modules=(head,), vocabulary_size=40)
    stream, following = torch.randn(2, 24), torch.tensor([1, 2])
    handle = head.register_forward_hook(lambda _, __, out: out.flip(-1))
    assert not can_walk(head)
    check(lens.read(stream, following, 3), expected(head(stream), [1, 2], 3))
    handle.remove()


def test_many_rows_are_read_in_parts() -> None:
    head = head_of(60, bias=False, seed=4)
    lens = LogitLens(paths=("head",), modules=(head,), vocabulary_size=60)
    stream = torch.randn(700, 24)
    following = torch.randint(0, 60, (700,))
    check(lens.read(stream, following, 3), expected(head(stream), following.tolist(), 3))
