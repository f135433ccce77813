"""Round trips through GGUF: the store of a file holds the original's rows, and a plan knows its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from attnlens.benchmarks.models.gguf_files import WRITERS
from attnlens.benchmarks.models.gguf_round_trip import CASES, LIMIT, round_trip
from attnlens.capture.models.gguf.model import ARCHITECTURES
from attnlens.capture.models.outline import outline
from attnlens.capture.models.request import Request

pytest.importorskip("gguf")


@pytest.mark.parametrize("case", CASES)
def test_rows_are_the_originals_and_a_plan_knows_the_configuration(tmp_path: Path, case: str) -> None:
    if case.split()[0] not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {case.split()[0]}")
    path = tmp_path / "tiny.gguf"
    found = round_trip(case, path, tmp_path / "run.zarr")
    assert found.error < LIMIT
    assert found.sharpest > 0.5
    planned = outline(Request(str(path))).config.to_dict()
    by_loading = {"_name_or_path", "dtype", "architectures"}
    assert {name: planned[name] for name in planned.keys() - by_loading} == {
        name: found.config[name] for name in found.config.keys() - by_loading
    }


def test_every_architecture_that_is_read_is_among_them() -> None:
    written = {WRITERS[case.split()[0]][0] for case in CASES}
    assert written == set(ARCHITECTURES)
