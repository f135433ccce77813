"""A store's own zarr.json that is large because it copies long texts opens; one that is a bomb is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnlens.schemas.errors import StoreError
from attnlens.store.listing import listing
from attnlens.store.places.json_text import DOCUMENT_VALUES, parse_object
from attnlens.store.reader import open_store
from attnlens.store.tools.seal import seal
from attnlens.store.verify import verify
from store_sample import Sample


def test_a_root_of_more_than_32_mib_of_prompts_opens(tmp_path: Path) -> None:
    """As of 12 captures whose prompts have 500,000 Chinese characters each: six bytes of JSON a character."""
    store = tmp_path / "run.zarr"
    Sample().write(store)
    document = json.loads((store / "zarr.json").read_text())
    ours = document["attributes"]["attnlens"]
    names = [f"{number:04d}" for number in range(1, 13)]
    ours["index"] += [{**ours["index"][0], "id": name, "prompt": "猫" * 500_000} for name in names]
    ours["planned"] += names
    (store / "zarr.json").write_text(json.dumps(document))
    assert (store / "zarr.json").stat().st_size > 1 << 25
    assert open_store(store).ids == ["0000", *names]
    assert open_store(store)["0000"].n_token == Sample().n_token


def test_a_prompt_of_six_million_characters_can_be_listed_and_verified(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    Sample().write(store)
    document = json.loads((store / "0000/zarr.json").read_text())
    document["attributes"]["attnlens"]["prompt"] = "猫" * 6_000_000
    (store / "0000/zarr.json").write_text(json.dumps(document))
    seal(store, "0000")
    assert listing(store)[0].prompt == "猫" * 255 + "…"
    assert open_store(store)[0].metadata.prompt == "猫" * 6_000_000
    assert verify(store).problems == []


@pytest.mark.parametrize("bomb", ["[]", "{}", '""', "0"])
def test_a_document_of_many_values_is_refused_before_it_is_parsed(tmp_path: Path, bomb: str) -> None:
    store = tmp_path / "run.zarr"
    store.mkdir()
    (store / "zarr.json").write_text('{"a": [' + f"{bomb}," * (DOCUMENT_VALUES + 1) + "0]}")
    with pytest.raises(StoreError, match="holds more than 4194304 values"):
        open_store(store)


def test_commas_inside_texts_are_no_values() -> None:
    text = '",[{\\' * DOCUMENT_VALUES
    assert parse_object(json.dumps({"prompt": text}).encode()) == {"prompt": text}
    with pytest.raises(ValueError, match="Unterminated"):
        parse_object(b'{"prompt": "' + b'\\",' * (DOCUMENT_VALUES + 1))
