"""Numbers on their way from a device: whoever computes goes on, and the store is the same."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from attnlens.capture import capture, evidence, residual_evidence, value_norm
from attnlens.capture.carry import Crossing, carry
from attnlens.capture.lenses import reader
from attnlens.schemas.errors import StoreError
from attnlens.store.late import arrived
from attnlens.store.verify import verify
from families import byte_tokenizer, tiny_model

PROMPT = "The quick brown fox jumps over the lazy dog"


class Copied:
    """A copy that another thread makes in its own time, as a device would."""

    threads = ThreadPoolExecutor(2)

    def __init__(self, source: np.ndarray[Any, Any], made: Any) -> None:
        self.nbytes = source.nbytes
        self._copy: Future[np.ndarray[Any, Any]] = self.threads.submit(made, source)

    def arrived(self) -> np.ndarray[Any, Any]:
        return self._copy.result()


def late(
    patch: pytest.MonkeyPatch, made: Any, modules: Any = (evidence, residual_evidence, value_norm, reader)
) -> None:
    for module in modules:
        patch.setattr(module, "carry", lambda tensor: Copied(arrived(carry(tensor)), made))


def slowly(source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    time.sleep(0.002)
    return source.copy()


def arrays(path: Path) -> dict[str, Any]:
    group: Any = zarr.open_group(path, mode="r")["0000"]
    return {name: array[:] for name, array in group.arrays() if name != "manifest_hash"}


def run(path: Path, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "residuals": True, "lens_points": "all"}
    capture(tiny_model("llama", dtype=dtype), byte_tokenizer(), PROMPT, path, raw=True, attention=attention, **options)
    return arrays(path)


@pytest.mark.parametrize(("attention", "dtype"), [("dense", torch.float32), ("qk", torch.bfloat16)])
def test_late_numbers_make_the_same_store(
    attention: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = run(tmp_path / "at_once.zarr", attention, dtype)
    late(monkeypatch, slowly)
    in_time = run(tmp_path / "late.zarr", attention, dtype)
    assert verify(tmp_path / "late.zarr").problems == []
    assert in_time.keys() == at_once.keys()
    for name in at_once.keys() - {"manifest_file"}:
        np.testing.assert_array_equal(in_time[name], at_once[name], err_msg=name)


def test_the_model_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_is_done = threading.Event()

    def held(source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert model_is_done.wait(20)
        return source.copy()

    late(monkeypatch, held, [evidence, residual_evidence, value_norm])  # a lens looks at its readings at once
    model, passes = tiny_model("llama"), []

    def count(_: Any, given: Any, keywords: dict[str, Any], __: Any) -> None:
        if keywords["input_ids"].shape[1] == 1:
            passes.append(1)
        if len(passes) == 1 + 11:  # the probe's, and every token of these but the last
            model_is_done.set()

    model.register_forward_hook(count, with_kwargs=True)
    capture(model, byte_tokenizer(), PROMPT, tmp_path / "run.zarr", raw=True, max_new_tokens=12, temperature=0)
    assert model_is_done.is_set()
    assert verify(tmp_path / "run.zarr").problems == []


def test_a_copy_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        raise RuntimeError("CUDA error: the launch timed out")

    late(monkeypatch, lost, [evidence, residual_evidence, value_norm])
    with pytest.raises(StoreError, match="the launch timed out; nothing was kept"):
        run(tmp_path / "run.zarr", "qk", torch.float32)


@pytest.mark.gpu
def test_copies_from_a_gpu_are_whole() -> None:
    torch.manual_seed(0)
    crossings, expected = [], []
    for size in (1, 1000, 1 << 20, 0):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            tensor = torch.randn(4096, 4096, device="cuda") @ torch.randn(4096, 4096, device="cuda")  # keeps it busy
            tensor = tensor.flatten()[:size].to(dtype)
            expected.append(tensor.clone())
            crossings.append(carry(tensor))
            del tensor  # its memory must not be given out before the copy is done
            torch.randn(1 << 21, device="cuda")
    assert all(isinstance(one, Crossing) for one in crossings)
    for one, tensor in zip(crossings, expected, strict=True):
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(one.arrived(), bits.cpu().numpy())  # type: ignore[union-attr]
