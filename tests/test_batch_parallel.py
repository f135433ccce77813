"""Tensor parallelism: two processes that hold one model together leave the store that one process leaves."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnlens
from attnlens.capture import capture, capture_many
from attnlens.capture.models import load
from attnlens.schemas.errors import InputError
from attnlens.store import layout
from attnlens.store.verify import verify
from batch_runs import arrays
from families import byte_tokenizer, tiny_model
from forks import Forked

FAMILIES = ("llama", "gemma2")
REFUSED = "phi3"
PROMPTS: list[Any] = [
    {"id": "fox", "prompt": "The quick brown fox"},
    {"id": "foreign", "prompt": [1, 2, 9999]},
    {"id": "dog", "prompt": "a lazy dog", "completion": " sleeps"},
]
OPTIONS: dict[str, Any] = {"raw": True, "temperature": 0, "max_new_tokens": 12}

CHILD = """
import torch
from attnlens.capture import capture, capture_many
from attnlens.capture.models import load
from attnlens.schemas.errors import AttnlensError
from test_batch_parallel import FAMILIES, OPTIONS, PROMPTS, REFUSED

for family in FAMILIES:
    loaded = load(family, tensor_parallel=True)
    report = capture_many(loaded.model, loaded.tokenizer, PROMPTS, family + ".tp.zarr", **OPTIONS)
    print(family, [one.id for one in report.failures], report.left, flush=True)
capture(loaded.model, loaded.tokenizer, "One", "single.zarr", residuals=True, attention="qk", **OPTIONS)
try:
    capture(loaded.model, loaded.tokenizer, "One", "single.zarr", **OPTIONS)
except AttnlensError as error:
    print("refused", error, flush=True)
try:
    loaded = load(REFUSED, tensor_parallel=True)
    capture(loaded.model, loaded.tokenizer, "One", "refused.zarr", **OPTIONS)
except AttnlensError as error:
    print("refused", error, flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and the stores that two processes made of them."""
    folder = tmp_path_factory.mktemp("parallel")
    for family in (*FAMILIES, REFUSED):
        model = tiny_model(family)
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder / family)
        byte_tokenizer().save_pretrained(folder / family)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    pair = [Forked(CHILD, cwd=folder, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    for rank, process in enumerate(pair):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        (folder / f"out.{rank}").write_text(out)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_leave_what_one_does(folder: Path, family: str) -> None:
    loaded = load(str(folder / family))
    truth, path = folder / f"{family}.one.zarr", folder / f"{family}.tp.zarr"
    capture_many(loaded.model, loaded.tokenizer, PROMPTS, truth, **OPTIONS)
    one, two = attnlens.open(truth), attnlens.open(path)
    assert [found.status for found in two] == [found.status for found in one] == ["complete", "failed", "complete"]
    for name in ("fox", "dog"):
        before, after = one[name].metadata, two[name].metadata
        assert (after.completion, after.sampling) == (before.completion, before.sampling)
        assert after.model == before.model
        assert after.lens == before.lens
        expected, found = arrays(truth, one[name].id), arrays(path, two[name].id)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            if values.dtype.kind != "f":
                np.testing.assert_array_equal(found[key], values, err_msg=key)
                continue
            assert np.array_equal(np.isnan(found[key]), np.isnan(values)), key
            size = np.nan_to_num(np.abs(values.astype(np.float64)))
            off = np.nan_to_num(np.abs(found[key].astype(np.float64) - values.astype(np.float64)))
            # Norms are larger than 1; and a float16 may be rounded the other way, so its neighbour is as good.
            step = 2.0**-10 * size if values.dtype == np.float16 else 0.0
            assert (off <= 1e-5 * np.maximum(1, size) + step).all(), (key, off.max())
    assert not verify(path).problems
    assert not list(path.rglob("*.partial"))


def test_each_process_has_files_of_its_own(folder: Path) -> None:
    capture_ = attnlens.open(folder / "llama.tp.zarr")["fox"]
    array = capture_["attention_weight"]
    assert array.shape[1] == 4
    assert array.files[1] == 2


def test_all_processes_agree(folder: Path) -> None:
    first, second = ((folder / f"out.{rank}").read_text().splitlines() for rank in range(2))
    assert first[0] == "llama ['foreign'] 0"
    assert second[0] == "llama ['foreign'] None"
    for lines in (first, second):
        assert "single.zarr exists" in lines[2]
        assert "Phi3ForCausalLM has 4 heads, and 4 of them in each of 2 processes" in lines[3]
    assert not (folder / "refused.zarr").exists()
    loaded = load(str(folder / FAMILIES[-1]))
    capture(loaded.model, loaded.tokenizer, "One", folder / "whole.zarr", residuals=True, attention="qk", **OPTIONS)
    one, two = arrays(folder / "whole.zarr", "0000"), arrays(folder / "single.zarr", "0000")
    np.testing.assert_array_equal(two["token_id"], one["token_id"])
    assert {"attention_q", "attention_k"} <= two.keys() == one.keys()
    for name in ("residual", "attention_q", "attention_k"):
        np.testing.assert_allclose(two[name], one[name], atol=1e-4, rtol=1e-5)


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 40), st.integers(1, 3000), st.sampled_from([0, 64 << 20]))
def test_no_file_holds_heads_of_two_processes(each: int, count: int, n_layer: int, capacity: int, hold: int) -> None:
    found = layout.attention_layout(
        n_layer=n_layer,
        n_head=each * count,
        n_prompt=max(1, capacity // 2),
        capacity=capacity,
        key_rows_hold=hold,
        head_groups=count,
    ).weight
    assert found.shard is not None
    assert all(shard % chunk == 0 for shard, chunk in zip(found.shard, found.chunk, strict=True))
    if count > 1:
        assert each % found.shard[1] == 0


def test_one_process_cannot_split_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="tensor_parallel needs several processes: torchrun"):
        load(str(folder / "llama"), tensor_parallel=True)
    with pytest.raises(InputError, match="quantize and tensor_parallel"):
        load(str(folder / "llama"), tensor_parallel=True, quantize="8bit")
    with pytest.raises(InputError, match="leave out the device 'cpu'"):
        load(str(folder / "llama"), tensor_parallel=True, device="cpu")
