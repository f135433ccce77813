"""Stores damaged by someone who knows their structure: one line or what was written, see fuzz_structure.py."""

from __future__ import annotations

import os

import pytest

from fuzz_structure import fuzz


@pytest.mark.parametrize(
    "count", [4, pytest.param(int(os.environ.get("ATTNLENS_FUZZ", "400")), marks=pytest.mark.nightly)]
)
def test_damage_by_someone_who_knows_the_structure(count: int) -> None:
    """docs/security.md says how many were run; `python tests/fuzz_structure.py FIRST COUNT` runs more."""
    assert fuzz(0, count)[0] == []
