"""The page on any web server: what is not what was written is refused, as by every other reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnlens.store.writer import StoreWriter
from store_sample import Sample
from test_store_rows import DAMAGE, swapped_entries
from viewer_page import Page, chromium, static_host


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sample]:
    """A layer is a shard whose chunks have digests."""
    path = tmp_path_factory.mktemp("proof") / "run.zarr"
    sample = Sample(n_prompt=500, n_generated=6, n_layer=4, n_head=6, vocabulary_size=30)
    sample.write(path, block=64, key_rows_hold=0)
    return path, sample


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def copy(stored: tuple[Path, Sample], tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored[0], tmp_path / "run.zarr"))


def looked_at(browser: Any, store: Path, **state: Any) -> tuple[str, Page]:
    """What the page says of a store on a static host, and the page, which is to be closed."""
    with static_host(store.parent, ranges=True) as url:
        page = Page(browser, f"{url}viewer/index.html?store=/run.zarr")
        page.set(**state)
        page.page.wait_for_timeout(50)
        return page.page.inner_text(".notice"), page


def test_a_store_as_it_was_written_is_shown_and_only_parts_of_large_files_are_read(
    browser: Any, stored: tuple[Path, Sample]
) -> None:
    path, sample = stored
    with static_host(path.parent, ranges=True) as url:
        page = Page(browser, f"{url}viewer/index.html?store=/run.zarr")
        page.set(view="cells", query=100, heads="3")
        shown = page.hover(1, 77)
        assert np.float16(shown["attention"]) == sample.weights[1, 3, 100, 77]
        assert page.page.inner_text(".notice") == ""
        assert any("chunk_sha256/c/" in request for request in page.requests)
        assert page.js("() => attnlens.side.capture.store.bytes.source.bytes") < 0.5 * sample.weights.nbytes
        page.close()
    assert page.wrong == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_part_that_is_not_the_one_that_was_written_is_refused(
    browser: Any, copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy / "0000")
    said, page = looked_at(browser, copy, view="cells", query=100, heads="3")
    page.close()
    assert "0000/" in said
    assert any(word in said for word in ("written", "missing", "cannot be read")), said


def swapped_reductions(capture: Path) -> None:
    one, other = (next(file for file in (capture / name / "c").rglob("*") if file.is_file()).relative_to(capture / name)
                  for name in ("attention_max", "attention_mean"))  # fmt: skip
    first, second = capture / "attention_max" / one, capture / "attention_mean" / other
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def lost_flags(capture: Path) -> None:
    shutil.rmtree(capture / "token_special/c")


def another_manifest(capture: Path) -> None:
    """The manifest of a capture that vouches for itself, whose metadata are of another."""
    sample = Sample(n_prompt=500, n_generated=6, n_layer=4, n_head=6, vocabulary_size=30, seed=1)
    writer = StoreWriter.create(capture.parent.parent / "other.zarr")
    sample.write(writer, block=64, key_rows_hold=0)
    for name in ("attention_max", "manifest_sha256"):
        shutil.rmtree(capture / name / "c")
        shutil.copytree(capture.parent.parent / "other.zarr/0000" / name / "c", capture / name / "c")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (swapped_reductions, "its bytes are not those that were written"),
        (lost_flags, "is missing, the manifest lists it"),
        (another_manifest, "its manifest is not the one that the metadata name"),
    ],
)
def test_files_are_compared_with_the_manifest(
    browser: Any, copy: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(copy / "0000")
    found, page = looked_at(browser, copy)
    page.close()
    assert said in found


def test_other_rows_of_a_damaged_file_are_still_shown(browser: Any, copy: Path, stored: tuple[Path, Sample]) -> None:
    swapped_entries(copy / "0000")
    with static_host(copy.parent, ranges=True) as url:
        page = Page(browser, f"{url}viewer/index.html?store=/run.zarr")
        page.set(view="cells", query=105, heads="3")
        assert np.float16(page.hover(1, 77)["attention"]) == stored[1].weights[1, 3, 105, 77]
        page.close()
