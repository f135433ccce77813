"""docs/format.md says what the code does: its tables, and its examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from attnlens.schemas.arrays import ARRAYS
from attnlens.schemas.lists import LISTS
from attnlens.schemas.metadata import (
    Adapter,
    Batch,
    BatchPrompt,
    CaptureMetadata,
    Hook,
    IndexEntry,
    LayerInfo,
    LeftOut,
    LensInfo,
    ListFiles,
    ModelInfo,
    Sampling,
    SelfCheck,
    StoreMetadata,
)
from store_sample import Sample

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """Rows of the first table below a line that begins with `heading`."""
    lines = PAGE[PAGE.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_table_of_arrays_is_that_of_the_code() -> None:
    expected = [
        [f"`{spec.name}`", ", ".join(spec.axes), spec.dtype, spec.unit, spec.presence, spec.meaning] for spec in ARRAYS
    ]
    assert table("| array | axes") == expected


@pytest.mark.parametrize(
    ("heading", "model"), [("## The store's attributes", StoreMetadata), ("## A capture's attributes", CaptureMetadata)]
)
def test_the_tables_of_attributes_are_those_of_the_code(heading: str, model: type[BaseModel]) -> None:
    named = [name for row in table(heading) for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(model.model_fields)


@pytest.mark.parametrize(
    "model",
    [
        ModelInfo,
        LayerInfo,
        LensInfo,
        LeftOut,
        Adapter,
        Hook,
        Sampling,
        SelfCheck,
        IndexEntry,
        Batch,
        BatchPrompt,
        ListFiles,
    ],
)
def test_every_field_of_the_smaller_records_is_named(model: type[BaseModel]) -> None:
    for name in model.model_fields:
        assert f"`{name}`" in PAGE, name


def test_the_table_of_lists_is_that_of_the_code() -> None:
    rows = {(row[0].strip("`")[: -len("-…")], row[1]): row[2:] for row in table("| group | axis")}
    for kind, columns in LISTS.items():
        for column in columns:
            cell = rows[kind, column.axis][0 if column.dtype == "string" else 1]
            assert f"`{column.name}`" in cell
    told = [name for row in rows.values() for cell in row for name in re.findall(r"`(\w+)`", cell)]
    assert len(told) == sum(map(len, LISTS.values()))


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Sample().write(tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(example, {})
    assert "synthetic complete 8 rows" in capsys.readouterr().out
