"""The notebook in docs/, cell by cell, beside stores of both modes of attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import attnlens
from store_sample import Sample
from test_store_qk import Vectors

NOTEBOOK = Path(__file__).parent.parent / "docs" / "xarray.ipynb"


@pytest.mark.parametrize(
    "sample", [Sample(none_layers=(1,)), Vectors(kinds=("full", "sliding", "none"))], ids=["dense", "qk"]
)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Sample) -> None:
    sample.write(tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    scope: dict[str, Any] = {}
    drawn = []
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
            if plt.get_fignums():
                drawn.append(np.asarray(plt.gca().collections[0].get_array()).reshape(sample.n_layer, -1))
                plt.close("all")
    capture = attnlens.open("run.zarr")[0]
    row = capture.attention.rows(capture.n_prompt - 1)[:, :, 0]
    np.testing.assert_allclose(np.ma.filled(drawn[0], np.nan), row.max(1), atol=1e-6)
    assert drawn[1].shape == (sample.n_layer, sample.n_head)
    assert list(scope["tree"].children) == ["0000"]
