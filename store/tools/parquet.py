"""`lens export run.zarr run.parquet`: what lenses read as one table, for pandas, polars, DuckDB, R."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import AbsentError
from attnlens.schemas.version import FORMAT, FORMAT_VERSION, NAMESPACE
from attnlens.store.files import clean, clean_text
from attnlens.store.reader import Capture, open_store
from attnlens.store.tools.exports import ExportReport, chosen, report_of, require
from attnlens.store.tools.lens_table import COLUMNS, Rows, lens_rows
from attnlens.store.tools.output import new_file

if TYPE_CHECKING:
    import pyarrow

GROUP_ROWS = 1 << 17
"""A row group has at least so many rows, save the last one."""
ABOUT = ("prompt_id", "status", "committed", "n_prompt", "n_token", "n_fed", "prompt", "completion", "lens_first",
         "created")  # fmt: skip
"""What the file's metadata say of each capture, beside its model, label and lenses."""
CHANGES = ("adapters", "hooks")
"""Fields of a model that are told where there is something in them."""


def export_parquet(
    store: str | PathLike[str],
    output: str | PathLike[str],
    *,
    captures: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write what the lenses of captures read as one table; its columns are `lens_table.COLUMNS`.

    Rows of what was not computed, or cropped away, are not there; single cells are null.

    Args:
        store: The store.
        output: The file.
        captures: Which captures, all if empty.
        overwrite: Replace a file that is there.
        progress: Where captures are counted.

    Raises:
        AbsentError: there is no such capture, or none of them has a lens.
        InputError: something is at `output`.
        MissingExtraError: pyarrow is not installed.
        StoreError: a chunk is damaged, or the disk refuses.
    """
    progress, files = progress or Silent(), require("pyarrow.parquet", "parquet", "parquet")
    there = chosen(open_store(store), captures)
    if not any(_has_table(capture) for capture in there):
        raise AbsentError(_why_empty(there, str(store)))
    schema, path = _schema(there), Path(output)
    progress.stage("exporting", len(there), "captures")
    waiting: list[pyarrow.Table] = []
    notes = []
    with (
        new_file(path, overwrite=overwrite) as temporary,
        files.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for capture in there:
            if not _has_table(capture):
                notes.append(f"no rows of {_why_empty([capture], str(store))}")
            for rows in lens_rows(capture):
                waiting.append(_table(rows, schema))
                if sum(map(len, waiting)) >= GROUP_ROWS:
                    _write(writer, waiting)
            progress.advance()
        _write(writer, waiting)
    progress.end()
    return report_of(path, there, notes)


def _write(writer: Any, waiting: list[pyarrow.Table]) -> None:
    """Write what waits as one row group."""
    import pyarrow

    if waiting:
        table = pyarrow.concat_tables(waiting)
        writer.write_table(table, row_group_size=max(1, len(table)))
        waiting.clear()


def _has_table(capture: Capture) -> bool:
    return any(name.startswith(("lens_token", "lens_probability", "mid_token", "tracked_")) for name in capture.names)


def _why_empty(captures: Sequence[Capture], store: str) -> str:
    if not captures:
        return f"{store} holds no capture yet, there is nothing to export"
    first = captures[0]
    return f"capture {first.id}: {first.why_absent('lens_token')}; the table is of what lenses read"


def _table(rows: Rows, schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow

    columns = []
    for field in schema:
        cells = rows[field.name]
        if isinstance(cells, np.ma.MaskedArray):
            columns.append(pyarrow.array(cells.data, field.type, mask=np.ma.getmaskarray(cells)))
        else:
            columns.append(pyarrow.array([None if text is None else clean_text(text) for text in cells], field.type))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _schema(captures: Sequence[Capture]) -> pyarrow.Schema:
    """Columns with unit and meaning; the file says of which captures, models and lenses it is."""
    import pyarrow

    kinds = {
        "string": pyarrow.string(),
        "int32": pyarrow.int32(),
        "bool": pyarrow.bool_(),
        "float32": pyarrow.float32(),
    }
    fields = [
        pyarrow.field(column.name, kinds[column.dtype], metadata={"unit": column.unit, "meaning": column.meaning})
        for column in COLUMNS
    ]
    about = {"format": FORMAT, "version": FORMAT_VERSION, "captures": {c.id: _about(c) for c in captures}}
    return pyarrow.schema(fields, metadata={NAMESPACE: json.dumps(clean(about))})


def _about(capture: Capture) -> dict[str, Any]:
    about = capture.metadata
    found = {name: getattr(about, name) for name in ABOUT}
    model = {name: getattr(about.model, name) for name in ("id", "revision", "n_layer", "vocabulary_size")}
    lenses = [lens.model_dump(mode="json") for lens in ([about.lens] if about.lens else []) + about.lenses]
    changes = {name: value for name in CHANGES if (value := getattr(about.model, name))}
    model |= {name: [one.model_dump(mode="json") for one in value] for name, value in changes.items()}
    label = {} if about.label is None else {"label": about.label}
    return {**found, **label, "model": model, "lenses": lenses}
