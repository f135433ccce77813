"""Captures on a GPU, against transformers' eager attention there and against the same capture on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attnlens
from attnlens.capture import capture
from attnlens.store.verify import verify
from families import CACHE, byte_tokenizer, tiny_model

pytestmark = pytest.mark.gpu
PROMPT = "The quick brown fox jumps over the lazy dog, and over it again"
FAMILIES = ("llama", "gemma2", "gpt_oss", "mistral")


@pytest.fixture(autouse=True)
def tf32() -> Iterator[None]:
    """As many programs set it. What is stored must not know of it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def run(path: Path, model: Any, **options: Any) -> Any:
    wanted: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0, "raw": True, "residuals": True}
    capture(model, byte_tokenizer(), PROMPT, path, **(wanted | options))
    assert verify(path).problems == []
    return attnlens.open(path)[0]


def eager_rows(model: Any, found: Any) -> np.ndarray[Any, Any]:
    """(layer, head, query, key) of eager attention in full float32, fed as a generation feeds it."""
    torch.set_float32_matmul_precision("highest")
    model.set_attn_implementation("eager")
    ids = found.token_id.tolist()
    rows = np.zeros((found.metadata.model.n_layer, found.metadata.model.n_head, found.n_fed, len(ids)), np.float32)
    first, cache = 0, None
    with torch.no_grad():
        for piece in [ids[: found.n_prompt], *[[token] for token in ids[found.n_prompt : -1]]]:
            fed = torch.tensor([piece], device="cuda")
            out = model(fed, **{CACHE: cache}, use_cache=True, output_attentions=True)
            cache, end = out[CACHE], first + len(piece)
            for layer, own in enumerate(out.attentions):
                rows[layer, :, first:end, end - own.shape[3] : end] = own[0].float().cpu().numpy()
            first = end
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["dense", "qk"])
def test_rows_are_those_of_eager_attention(family: str, attention: str, tmp_path: Path) -> None:
    model = tiny_model(family).cuda()
    found = run(tmp_path / "run.zarr", model, attention=attention)
    off = np.abs(found.attention.rows(range(found.n_fed)).astype(np.float32) - eager_rows(model, found)).max()
    assert off <= (1e-5 if attention == "qk" else 6e-4)  # dense rows are float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_both_modes_say_the_same_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=dtype).cuda()
    dense, qk = (run(tmp_path / f"{way}.zarr", model, attention=way) for way in ("dense", "qk"))
    assert dense.token_id.tolist() == qk.token_id.tolist()
    rows = [one.attention.rows(range(one.n_fed)).astype(np.float32) for one in (dense, qk)]
    assert np.abs(rows[0] - rows[1]).max() <= 6e-4
    for name in ("lens_token", "residual", "value_norm"):
        np.testing.assert_array_equal(dense[name][:], qk[name][:])


def test_the_processor_says_the_same(tmp_path: Path) -> None:
    here = run(tmp_path / "cpu.zarr", tiny_model("llama"), attention="qk")
    there = run(tmp_path / "cuda.zarr", tiny_model("llama").cuda(), attention="qk")
    assert here.token_id.tolist() == there.token_id.tolist()
    for name in ("residual", "lens_probability", "lens_entropy", "next_probability", "value_norm"):
        np.testing.assert_allclose(there[name][:], here[name][:], atol=1e-4, equal_nan=True)


def test_device_memory_stays_small(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16).cuda()
    run(tmp_path / "first.zarr", model)
    before = torch.cuda.memory_allocated()
    run(tmp_path / "second.zarr", model)
    assert torch.cuda.memory_allocated() <= before + (1 << 20)  # nothing that was carried is still held
