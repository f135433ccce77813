"""bfloat16 in the order "whole-exponent": every pattern comes back by our reader, by plain zarr and in the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import attnlens
from attnlens.render.pictures import render
from attnlens.schemas.errors import AttnlensError
from attnlens.store.bfloat16 import from_whole_exponent, to_whole_exponent
from attnlens.store.tools.seal import seal
from attnlens.store.verify import verify
from plain_bits import own_order
from test_store_qk import Vectors
from viewer_page import Page, chromium, serving

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
ROWS = 1 << 7


class EveryPattern(Vectors):
    """Queries in which every pattern of 16 bits occurs once, infinities and all NaN included."""

    def __init__(self) -> None:
        super().__init__(kinds=("full", "full"), features=64, dtype="bfloat16", n_prompt=ROWS - 8, n_generated=9)
        # Moved by one, because NaN as the first feature of a row is what a missing chunk looks like.
        self.patterns = np.roll(PATTERNS, 1).reshape(ROWS, 2, 4, 64)
        self.q[:ROWS] = (self.patterns.astype(np.uint32) << 16).view(np.float32)

    def rows(self) -> NDArray[np.float64]:
        return np.zeros((self.n_layer, self.n_head, self.n_token, self.n_token))


def test_both_orders_hold_every_pattern() -> None:
    stored = to_whole_exponent(PATTERNS)
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(np.sort(stored), PATTERNS)
    np.testing.assert_array_equal(from_whole_exponent(stored), PATTERNS)
    sign, exponent, fraction = PATTERNS >> 15, PATTERNS >> 7 & 255, PATTERNS & 127
    np.testing.assert_array_equal(stored >> 8, sign << 7 | exponent & 127)
    np.testing.assert_array_equal(stored >> 1 & 127, fraction)
    numbers = (PATTERNS.astype(np.uint32) << 16).view(np.float32)
    usual = (np.abs(numbers) >= 2.0**-63) & (np.abs(numbers) < 2.0**65)
    np.testing.assert_array_equal(stored & 1, usual)


def test_the_lines_of_the_page_are_true() -> None:
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith(("      bits = ", "      numbers = "))]
    assert len(lines) == 2
    names: dict[str, Any] = {"stored": to_whole_exponent(PATTERNS)}
    exec("\n".join(lines), names)
    np.testing.assert_array_equal(names["bits"], PATTERNS)
    np.testing.assert_array_equal(names["numbers"].view(np.uint32), PATTERNS.astype(np.uint32) << 16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EveryPattern]:
    path, sample = tmp_path_factory.mktemp("every") / "run.zarr", EveryPattern()
    sample.write(path)
    return path, sample


def test_every_pattern_comes_back(store: tuple[Path, EveryPattern]) -> None:
    path, sample = store
    array: Any = zarr.open_group(path, mode="r")["0000/attention_q"]
    assert (array.dtype, array.fill_value) == (np.uint16, 0x7F80)
    np.testing.assert_array_equal(own_order(array, array[:ROWS]), sample.patterns)
    found = attnlens.open(path)[0]["attention_q"]
    assert (found.dtype, found.kind) == (np.dtype(np.float32), "bfloat16")
    np.testing.assert_array_equal(found[:ROWS].view(np.uint32) >> 16, sample.patterns)
    np.testing.assert_array_equal(found[5, 1, 2].view(np.uint32) >> 16, sample.patterns[5, 1, 2])


def test_every_pattern_comes_back_in_the_page(store: tuple[Path, EveryPattern]) -> None:
    path, sample = store
    read = """async () => { const data = await attnlens.side.capture.readFloats("attention_q");
      return [...new Uint32Array(data.buffer)]; }"""
    with chromium() as browser, serving(path) as server:
        page = Page(browser, server.url)
        found = np.asarray(page.js(read), np.uint32).reshape(-1, 2, 4, 64)
        np.testing.assert_array_equal(found[:ROWS] >> 16, sample.patterns)
        page.close()


def described(path: Path, change: dict[str, Any]) -> None:
    """Change what the attributes of `attention_k` say, as one who knows how to vouch for it."""
    document = json.loads((path / "0000/attention_k/zarr.json").read_bytes())
    document["attributes"]["attnlens"] |= change
    (path / "0000/attention_k/zarr.json").write_text(json.dumps(document))
    seal(path, "0000")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"encoding": "whole-fraction"},
            "encoding 'whole-fraction' of uint16 is unknown; known: sqrt254 of uint8, whole-",
        ),
        ({"encoding": "sqrt254"}, "encoding 'sqrt254' of uint16 is unknown"),
        ({"bits": "float16"}, "encoding 'whole-exponent' of uint16 is unknown"),
        ({"encoding": {"name": "whole-exponent"}}, "encoding .* of uint16 is unknown"),
    ],
)
def test_an_encoding_that_is_not_known_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "run.zarr"
    Vectors(kinds=("full",), dtype="bfloat16", n_prompt=8).write(path)
    described(path, change)
    with pytest.raises(AttnlensError, match=words) as refused:
        render(path, tmp_path / "pictures")
    assert "\n" not in str(refused.value)
    assert "0000/attention_k" in str(refused.value)
    assert any("attention_k" in str(problem) for problem in verify(path).problems)


def test_the_page_refuses_it_as_well(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    Vectors(kinds=("full",), dtype="bfloat16", n_prompt=8).write(path)
    described(path, {"encoding": "whole-fraction"})
    with chromium() as browser, serving(path) as server:
        page = Page(browser, server.url)
        told = "0000/attention_k: its encoding whole-fraction is not one that this viewer reads: use a newer attnlens."
        assert told in page.page.inner_text("body")
        page.close()


def test_a_capture_that_goes_on_writes_the_same_order(tmp_path: Path) -> None:
    """Rows are added to chunks that are half full."""
    sample = Vectors(kinds=("full", "sliding"), dtype="bfloat16", n_prompt=21, n_generated=30)
    sample.write(tmp_path / "run.zarr")
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["0000"]
    for name, values in (("attention_q", sample.q), ("attention_k", sample.k)):
        stored = own_order(group[name], group[name][:])
        np.testing.assert_array_equal(stored[: sample.n_fed], sample.bits(values[: sample.n_fed]))
        assert (stored[sample.n_fed :] == 0x7FC0).all()
