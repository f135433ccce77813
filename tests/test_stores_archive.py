"""Stores that earlier releases wrote must open and be drawn for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.render.pictures import render
from attnlens.store.verify import verify

STORES = sorted((Path(__file__).parent / "stores").glob("*.zarr"))


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_an_archived_store_is_whole(path: Path) -> None:
    report = verify(path)
    assert report.problems == []


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_an_archived_store_reads_as_plain_zarr_reads_it(path: Path) -> None:
    root: Any = zarr.open_group(path, mode="r")
    for capture in attnlens.open(path):
        group = root[capture.id]
        fed = capture.n_fed
        rows = capture.attention.rows(slice(0, fed))
        np.testing.assert_array_equal(rows, group["attention_weight"][:, :, :fed].astype(np.float32))
        np.testing.assert_allclose(rows.sum(axis=-1).max(), 1, atol=2e-3)
        np.testing.assert_array_equal(capture["lens_token"][...], group["lens_token"][:])
        assert "".join(capture.token_text).startswith(("<s>Hi, Bob ", "<s>Who"))


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_an_archived_store_is_drawn(path: Path, tmp_path: Path) -> None:
    assert render(path, tmp_path / "pictures").count > 0


def test_the_first_format_is_archived() -> None:
    assert [path.name for path in STORES][:1] == ["format-1.zarr"]
