"""`--lens-tokens`: rows that the lens was not asked to read are absent, and everything that reads a store says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.capture import capture
from attnlens.capture.settings import Settings
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.arrays import LENS_ROWS
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.verify import verify
from families import byte_tokenizer, tiny_model

PROMPT = "The quick brown fox jumps over the lazy dog"


def run(path: Path, **options: Any) -> Path:
    settings = {"raw": True, "max_new_tokens": 4, "temperature": 0, "lens_points": "all", "track": [7], **options}
    capture(tiny_model("llama"), byte_tokenizer(), PROMPT, path, **settings)
    return path


@pytest.mark.parametrize(("which", "count"), [("generated", 1), ("last:5", 5), ("last:1000", 1000)])
@pytest.mark.parametrize("completion", [None, "and runs"])
def test_read_rows_are_those_of_a_whole_reading(which: str, count: int, completion: str | None, tmp_path: Path) -> None:
    whole = attnlens.open(run(tmp_path / "all.zarr", completion=completion))[0]
    path = run(tmp_path / "some.zarr", completion=completion, lens_tokens=which)
    some = attnlens.open(path)[0]
    first = max(0, some.n_prompt - count)
    assert some.metadata.lens_first == first
    assert verify(path).passed
    raw: Any = zarr.open_group(path, mode="r")["0000"]
    for name in sorted(LENS_ROWS):
        values, expected = some[name][:], whole[name][:]
        np.testing.assert_allclose(values[:, first:].astype(float), expected[:, first:].astype(float), atol=1e-5)
        absent = np.asarray(raw[name][:, :first])
        assert (np.isnan(absent) if absent.dtype.kind == "f" else absent == -1).all(), name
    np.testing.assert_array_equal(some["attention_weight"][:], whole["attention_weight"][:])


def test_absent_rows_are_named(tmp_path: Path) -> None:
    path = run(tmp_path / "some.zarr", lens_tokens="generated")
    some = attnlens.open(path)[0]
    first = some.n_prompt - 1
    with pytest.raises(AbsentError, match=rf"lens_token has no row 3: the lens was asked to read .* {first} on"):
        some["lens_token"][:, 3]
    assert (some["lens_token"][:, first] >= 0).all()
    with pytest.raises(AbsentError, match=rf"did not read token 0.*--tokens {first}:.*--text weight"):
        render(path, tmp_path / "pictures")
    render(path, tmp_path / "weights", options=RenderOptions(text="weight"))
    render(path, tmp_path / "tokens", options=RenderOptions(tokens=f"{first}:"))


def test_a_reading_where_none_should_be_is_found(tmp_path: Path) -> None:
    path = run(tmp_path / "some.zarr", lens_tokens="generated")
    array: Any = zarr.open_group(path, mode="r+")["0000/lens_entropy"]
    array[0, 2] = 1.0
    told = [problem.message for problem in verify(path).problems]
    assert any("before lens_first" in message for message in told)


@pytest.mark.parametrize("which", ["", "some", "last", "last:", "last:0", "last:-1", "last:1.5", "generated:2", "1"])
def test_other_words_are_refused(which: str) -> None:
    with pytest.raises(InputError, match=r"^lens_tokens is"):
        Settings(lens_tokens=which).check()


def test_no_lens_reads_no_tokens() -> None:
    with pytest.raises(InputError, match=r"^lenses, lens_tokens, track and lens_points ask for a lens, and lens=False"):
        Settings(lens=False, lens_tokens="generated").check()
