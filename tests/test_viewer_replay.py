"""Stores of queries and keys in the page: rows replayed in a worker, against the formulas in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnlens.render.viewer.single import export_html
from test_store_qk import KINDS, Vectors
from viewer_page import Page, chromium, serving

MAP = """async () => { const { board } = attnlens.view; board.zoom(3); board.pan(-999, -999);
  const rows = Array.from({ length: board.scene.nRow }, (_, row) => row);
  for (let i = 0; i < 900 && !rows.every(board.scene.has); i++) {
    board.pan(0, i % 40 < 20 ? 999 : -999);
    await new Promise((done) => setTimeout(done, 10));
  }
  return rows.map((row) => rows.map((key) => (key > row ? 0 : board.scene.value(row, key)))); }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_replayed_rows_are_the_formulas(tmp_path: Path, browser: Any, dtype: str) -> None:
    sample = Vectors(kinds=KINDS, dtype=dtype, n_prompt=270, n_generated=3)
    exact, fed = sample.rows(), sample.n_fed
    sample.rows = lambda: exact  # type: ignore[method-assign]  # once is enough
    sample.write(tmp_path / "run.zarr")
    with serving(tmp_path / "run.zarr") as server:
        page = Page(browser, server.url)
        for query in (0, 3, 255, 269, fed - 1):
            found = page.js("async (query) => [...(await attnlens.side.attention.rows(query)).data].map(String)", query)
            got = np.array(found, np.float64).reshape(len(KINDS), sample.n_head, query + 1)
            wanted = exact[:, :, query, : query + 1].astype(np.float16)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
            last_place = np.spacing(np.nan_to_num(wanted)).astype(np.float64)
            assert (np.nan_to_num(np.abs(got - wanted)) <= last_place).all()
        page.set(view="map", map="3.1", at=None)
        shown = np.array(page.js(MAP), np.float64)
        np.testing.assert_allclose(shown, np.tril(exact[3, 1, :fed, :fed]), atol=5e-4)
        assert page.wrong == []
        page.close()
    export_html(tmp_path / "run.zarr", tmp_path / "one.html")
    page = Page(browser, (tmp_path / "one.html").as_uri() + "#heads=2&query=200", offline=True)
    value = page.js("() => attnlens.view.board.scene.value(5, 150)")
    assert value == pytest.approx(exact[5, 2, 200, 150], abs=5e-4)
    assert page.wrong == []
    page.close()
