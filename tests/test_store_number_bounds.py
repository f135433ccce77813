"""Numbers in a stranger's documents that JSON does not have, or numpy cannot hold: one line, whoever reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from attnlens.schemas.errors import StoreError
from attnlens.store.manifest import document_digest
from attnlens.store.reader import open_store
from attnlens.store.tools.crop import crop
from attnlens.store.tools.merge import merge
from attnlens.store.tools.pack import pack
from attnlens.store.verify import verify
from render_store import make


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store whose only capture was broken off, so that no digest vouches for its documents."""
    make(tmp_path / "run.zarr", broken_off=9)
    return tmp_path / "run.zarr"


def with_number(document: Path, field: str, number: str) -> None:
    """Write a number as it stands into the first field of that name, and the digest that goes with it."""
    text, count = re.subn(rf'("{field}": )[-\w.]+', rf"\g<1>{number}", document.read_text(), count=1)
    assert count == 1
    digest = document_digest(json.loads(text))
    document.write_text(re.sub(r'("digest": )"\w+"', rf'\g<1>"{digest}"', text))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999"])
@pytest.mark.parametrize("where", ["zarr.json", "0000/zarr.json", "0000/token_id/zarr.json"])
def test_numbers_that_json_does_not_have(where: str, number: str, store: Path, tmp_path: Path) -> None:
    text = json.loads((store / where).read_text())
    text["attributes"]["attnlens"]["note"] = 1
    (store / where).write_text(json.dumps(text))
    with_number(store / where, "note", number)
    for tool in (
        lambda: merge([store], tmp_path / "merged.zarr"),
        lambda: crop(store, tmp_path / "crop.zarr"),
        lambda: pack(store, tmp_path / "run.zarr.zip"),
    ):
        with pytest.raises(StoreError, match="no number of JSON") as caught:
            tool()
        assert "\n" not in str(caught.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"run.zarr"}


@pytest.mark.parametrize("number", [1 << 64, -(1 << 63) - 1, 10**59, 10**4000])
@pytest.mark.parametrize("field", ["vocabulary_size", "n_layer", "committed", "n_token"])
def test_whole_numbers_that_numpy_cannot_hold(field: str, number: int, store: Path) -> None:
    with_number(store / "0000" / "zarr.json", field, str(number))
    with pytest.raises(StoreError, match=field) as caught:
        open_store(store)["0000"]
    assert "\n" not in str(caught.value)
    found: list[Any] = verify(store).problems
    assert any(field in problem.message for problem in found)
