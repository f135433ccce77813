"""docs/models.md lists every class of the installed transformers, and a sample of it is still true."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from attnlens.benchmarks.models.examine import Verdict, examine
from attnlens.benchmarks.models.table import cell, listed, page
from attnlens.benchmarks.models.tiny_configs import names

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
DOCUMENTED = f"transformers {transformers.__version__} knows by name" in PAGE
SAMPLE = (
    "cohere2",
    "deepseek_v4",
    "diffllama",
    "falcon_h1",
    "gptj",
    "granite_swa",
    "inkling_text",
    "laguna",
    "mamba",
    "phi3",
)
"""One of each way to be taken or refused: sliding windows, compressed keys, two calls, hybrids, reports, late sinks,
position biases, unequal heads, no attention, keys that are made anew."""

needs_version = pytest.mark.skipif(not DOCUMENTED, reason="the page is about another version of transformers")


@needs_version
def test_every_class_is_listed() -> None:
    assert {kind: name for kind, (name, _, _) in listed(PAGE).items()} == names()


@needs_version
@pytest.mark.parametrize("kind", SAMPLE)
def test_the_page_is_still_true(kind: str) -> None:
    verdict = examine(kind)
    assert not verdict.wrong
    name, works, columns = listed(PAGE)[kind]
    assert (name, works) == (verdict.name, verdict.works)
    assert columns == {column: cell(getattr(verdict, column), verdict.name) for column in columns}


def test_a_page_lists_what_it_was_made_of() -> None:
    good = Verdict(
        kind="a-b",
        name="ABForCausalLM",
        works=True,
        layers="2 of 4",
        attention="functions",
        given="differs: |a| grows",
        gguf="-",
        unused="yes",
        lens="yes",
    )
    bad = Verdict(kind="c", name="CForCausalLM", works=False, reason="CForCausalLM: it | looks ahead")
    text = page([good, bad], n_prompt=3, n_new=2, limits=(1e-4, 1e-5))
    assert listed(text) == {
        "a-b": (
            "ABForCausalLM",
            True,
            {
                "layers": "2 of 4",
                "attention": "functions",
                "given": "differs: \\|a\\| grows",
                "gguf": "-",
                "unused": "yes",
                "lens": "yes",
            },
        ),
        "c": ("CForCausalLM", False, {"reason": "it \\| looks ahead"}),
    }
    assert "1 of 2 work, 1 are refused" in text
