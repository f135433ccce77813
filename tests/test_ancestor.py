"""Parity with the ancestor: what its code computed, and what Meta's equations give for other checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from attnlens.capture.run import CaptureOptions, run
from attnlens.progress import Silent
from tiny import meta_pass, write_meta

ORACLES = Path(__file__).resolve().parents[2] / "shared" / "oracles"
FLOAT16 = 6e-4


def captured(folder: Path, output: Path, **options: Any) -> Any:
    """The capture of a checkpoint in float32, greedy, as plain zarr reads it."""
    run(
        CaptureOptions(
            model=str(folder), output=output, dtype="float32", device="cpu", **{"temperature": 0.0, **options}
        ),
        Silent(),
    )
    group: Any = zarr.open_group(output, mode="r")["0000"]
    return group


def test_the_ancestors_own_figures(tmp_path: Path) -> None:
    if not (ORACLES / "dev" / "expected.npz").is_file():
        pytest.skip("the ancestor's results are not here")
    script = [sys.executable, str(ORACLES / "meta_checkpoint.py"), str(ORACLES / "dev" / "spec.json"), str(tmp_path)]
    subprocess.run(script, check=True)
    shutil.copy(ORACLES / "tokenizer.model", tmp_path)
    spec = json.loads((ORACLES / "dev" / "spec.json").read_text())
    expected = np.load(ORACLES / "dev" / "expected.npz")
    group = captured(
        tmp_path, tmp_path / "run.zarr", prompt=spec["prompt"], system=spec["system"],
        max_new_tokens=spec["max_new_tokens"],
    )  # fmt: skip
    n_prompt, n_fed = len(expected["prompt_ids"]), expected["lens_token"].shape[1]
    ids = group["token_id"][:]
    assert ids[:n_prompt].tolist() == expected["prompt_ids"].tolist()
    assert ids[n_prompt:].tolist() == expected["generated_ids"].tolist()
    np.testing.assert_array_equal(group["lens_token"][1:, :n_fed, 0], expected["lens_token"])
    np.testing.assert_allclose(group["lens_probability"][1:, :n_fed, 0], expected["lens_prob"], atol=1e-6)
    weights = group["attention_weight"][:, :, :n_fed, :n_fed].astype(np.float32)
    np.testing.assert_allclose(weights.max(axis=1).transpose(1, 0, 2), expected["attention_max"], atol=FLOAT16)
    reduced = group["attention_max"][: n_fed - n_prompt + 1, :, :n_fed].astype(np.float32)
    np.testing.assert_allclose(reduced, expected["attention_max"][n_prompt - 1 :], atol=FLOAT16)


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({"n_kv_heads": 1, "rope_theta": 500000.0}, 1),
        ({"n_kv_heads": 2, "use_scaled_rope": True, "rope_theta": 500000.0}, 2),
        ({}, 1),
    ],
    ids=["unscaled", "scaled in two shards", "multi-head"],
)
def test_other_checkpoints_by_metas_equations(changes: dict[str, Any], ranks: int, tmp_path: Path) -> None:
    params, state = write_meta(tmp_path / "model", changes, ranks=ranks, seed=5)
    group = captured(tmp_path / "model", tmp_path / "run.zarr", prompt="爱丽丝和鲍勃是兄妹。Кто сестра Боба? 🙂",
                     system="नमस्ते", max_new_tokens=9)  # fmt: skip
    meta = group.attrs["attnlens"]
    ids, n_prompt, n_fed = group["token_id"][:].tolist(), meta["n_prompt"], meta["n_fed"]
    truth = meta_pass(params, state, ids[:n_fed])
    assert ids[n_prompt:] == truth.lens[-1, n_prompt - 1 :].argmax(-1).tolist()
    top = truth.lens.softmax(-1).topk(2, dim=-1)
    clear = ((top.values[..., 0] - top.values[..., 1]) > 1e-5).numpy()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(group["lens_token"][:, :n_fed, 0][clear], top.indices[..., 0].numpy()[clear])
    np.testing.assert_allclose(group["lens_probability"][:, :n_fed, 0], top.values[..., 0].numpy(), atol=1e-6)
    weights = group["attention_weight"][:, :, :n_fed, :n_fed].astype(np.float32)
    np.testing.assert_allclose(weights, truth.attention.numpy(), atol=FLOAT16)
