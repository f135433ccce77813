"""`lens relens`: what it adds is what a capture would have read, and a store is as it was where it fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM, AutoTokenizer

import attnlens
from attnlens.capture import capture
from attnlens.capture import relens as module
from attnlens.capture.relens import RelensOptions, relens
from attnlens.progress import Silent
from attnlens.schemas.arrays import READINGS, TRACKED_READINGS, reading
from attnlens.schemas.errors import AbsentError, AttnlensError, InputError, ModelError, StoreError
from attnlens.store.tools import extend
from attnlens.store.tools.pack import pack
from attnlens.store.verify import verify
from test_capture_evidence import write_tuned
from tiny import write_hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another of the same shape, a tuned lens, and a store with residuals and the logit lens."""
    path = tmp_path_factory.mktemp("relens")
    write_hf(path / "model")
    write_hf(path / "other", seed=3)
    write_tuned(path / "lens", 3, 32)
    write_store(path / "run.zarr", path)
    return path


def write_store(store: Path, folder: Path, **options: Any) -> None:
    dtype = options.pop("dtype", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for text in ("Who is Bob's sister?", "2 + 2"):
        capture(
            model, tokenizer, text, store, append=True, max_new_tokens=9, temperature=0,
            **{"track": [5], "residuals": True, **options},
        )  # fmt: skip


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "run.zarr", tmp_path / "run.zarr"))


def bytes_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def options(store: Path, folder: Path, *lenses: str, **more: Any) -> RelensOptions:
    return RelensOptions(
        store=store, model=str(folder / "model"), lenses=lenses or (f"tuned:{folder / 'lens'}",), **more
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_added_is_what_a_capture_reads(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    store = tmp_path / "run.zarr"
    write_store(store, folder, dtype=dtype)
    write_store(tmp_path / "both.zarr", folder, dtype=dtype, lenses=["logit", f"tuned:{folder / 'lens'}"])
    before = bytes_of(store)
    report = relens(options(store, folder), Silent())
    assert report.added == {"0000": ["tuned"], "0001": ["tuned"]}
    for name in ("0000", "0001"):
        found: Any = zarr.open_group(store, mode="r")[name]
        expected: Any = zarr.open_group(tmp_path / "both.zarr", mode="r")[name]
        assert sorted(found) == sorted(expected)
        for array in (*READINGS, *TRACKED_READINGS):
            one, other = found[reading(array, "tuned")][:], expected[reading(array, "tuned")][:]
            if one.dtype.kind == "f":
                np.testing.assert_allclose(one, other, atol=1e-5 if dtype == torch.float32 else 3e-3)
            else:
                assert (one == other).mean() > (0.999 if dtype == torch.float32 else 0.9)
        ids = found["vocabulary_id"][:].tolist()
        assert set(np.unique(found["lens_token_tuned"][:])) - {-1} <= set(ids)
        assert len(ids) == len(set(ids)) == len(found["vocabulary_text"][:])
    assert verify(store).problems == []
    after = bytes_of(store)
    changed = {name for name in before if after[name] != before[name]}
    assert all("/vocabulary_" in name or "/manifest_" in name or name.count("/") < 2 for name in changed), changed
    assert attnlens.open(store)[0].lens_names == ["logit", "tuned"]


def test_a_store_without_a_lens_gets_its_first(folder: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "run.zarr", folder, lens=False, track=[])
    write_store(tmp_path / "expected.zarr", folder, track=[])
    relens(options(tmp_path / "run.zarr", folder, "logit"), Silent())
    found, expected = attnlens.open(tmp_path / "run.zarr")[0], attnlens.open(tmp_path / "expected.zarr")[0]
    assert found.names == expected.names
    np.testing.assert_array_equal(found["lens_token"][:], expected["lens_token"][:])
    np.testing.assert_allclose(found["lens_probability"][:], expected["lens_probability"][:], atol=1e-5)
    assert found.vocabulary == expected.vocabulary
    assert found.metadata.lens == expected.metadata.lens
    assert found.metadata.lens_absent is None
    assert verify(tmp_path / "run.zarr").problems == []


def test_several_lenses_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    store = copied(folder, tmp_path)
    relens(options(store, folder), Silent())
    relens(options(store, folder, capture="0001"), Silent())
    assert [found.lens_names for found in attnlens.open(store)] == [["logit", "tuned"], ["logit", "tuned", "tuned2"]]
    assert verify(store).problems == []


@pytest.mark.parametrize("fault", ["fill", "move", "capture", "store", "interrupt"])
def test_a_failure_leaves_the_store_as_it_was(
    fault: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copied(folder, tmp_path)
    before = bytes_of(store)

    def full(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt if fault == "interrupt" else OSError(28, "No space left on device")

    match fault:
        case "fill":
            monkeypatch.setattr(module, "_stream", full)
        case "move":
            monkeypatch.setattr(Path, "rename", full_at(2, Path.rename, full))
        case "capture" | "interrupt":
            monkeypatch.setattr(extend, "write_document", full)
        case "store":
            monkeypatch.setattr(extend, "write_root", full)
    error = KeyboardInterrupt if fault == "interrupt" else OSError if fault == "fill" else StoreError
    with pytest.raises(error):
        relens(options(store, folder, capture="0000"), Silent())
    assert bytes_of(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.zarr"]


def full_at(number: int, real: Any, full: Any) -> Any:
    """`real`, but one of its calls fails."""
    calls: list[int] = []

    def call(*args: Any) -> Any:
        calls.append(1)
        return (full if len(calls) == number else real)(*args)

    return call


def test_what_cannot_be_added_is_refused(folder: Path, tmp_path: Path) -> None:
    store = copied(folder, tmp_path)
    before = bytes_of(store)

    def refused(error: type[AttnlensError], match: str, wanted: RelensOptions) -> None:
        with pytest.raises(error, match=match):
            relens(wanted, Silent())

    refused(InputError, "--lens logit: it is there already", options(store, folder, "logit"))
    refused(InputError, "'mine' is not known: expected logit, or tuned:FOLDER", options(store, folder, "mine"))
    refused(InputError, "there is no such folder", options(store, folder, "tuned:nowhere"))
    refused(AbsentError, "no capture '0009'", options(store, folder, capture="0009"))
    wrong = RelensOptions(store=store, model=str(folder / "other"), lenses=(f"tuned:{folder / 'lens'}",))
    refused(ModelError, "not the model that was captured", wrong)
    assert bytes_of(store) == before
    packed = pack(store, tmp_path / "run.zarr.zip").path
    refused(InputError, "is no folder", options(packed, folder))
    write_store(tmp_path / "bare.zarr", folder, residuals=False)
    refused(InputError, "0000 has no residuals", options(tmp_path / "bare.zarr", folder))
