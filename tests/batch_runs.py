"""Runs of many prompts for the tests: a tiny model, some prompts, child processes, and what their stores hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

import attnlens
from attnlens.capture.batch.many import ManyReport, capture_many
from families import byte_tokenizer, tiny_model
from forks import Forked

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "is", "not", "amused", "at", "all"]
OPTIONS: dict[str, Any] = {"raw": True, "temperature": 1.5, "top_p": 1.0, "max_new_tokens": 12, "seed": 5}

CHILD = """
import sys, time
from batch_runs import prompts, run

class Slow:
    def __init__(self): self.name = ""
    def stage(self, name, total=None, unit=""): pass
    def advance(self, amount=1, note=""):
        if "decode" in note:
            time.sleep(float(sys.argv[3]))
    def end(self): pass

print("ready", flush=True)
mode = dict.fromkeys(sys.argv[4:], True)
report = run(sys.argv[1], prompts(int(sys.argv[2])), progress=Slow(), **mode)
print("done", len(report.captures), len(report.failures), report.left, flush=True)
"""


def prompts(count: int) -> list[dict[str, Any]]:
    """Prompts of different lengths, with ids that are not in the order of their names."""
    return [
        {"id": f"q{(7 * number) % count}-{number}", "prompt": " ".join(WORDS[number % 5 : 7 + number % 7])}
        for number in range(count)
    ]


def model(family: str = "llama") -> Any:
    """The tiny model, which never ends a text by itself."""
    tiny = tiny_model(family)
    tiny.generation_config.eos_token_id = None
    return tiny


def run(path: Path | str, asked: list[Any], *, family: str = "llama", **options: Any) -> ManyReport:
    return capture_many(model(family), byte_tokenizer(), asked, path, **{**OPTIONS, **options})


def child(path: Path, count: int, *mode: str, pause: float, rank: int = 0, world: int = 1) -> Forked:
    """A process that captures `count` prompts, resting between tokens. `mode`: "resume", "overwrite"."""
    environment = {}
    if world > 1:
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    return Forked(CHILD, path, count, pause, *mode, cwd=path.parent, **environment)


def arrays(path: Path, name: str) -> dict[str, Any]:
    """Every array of a capture, read by zarr alone; the manifest lists files and is not evidence."""
    group: Any = zarr.open_group(path, mode="r")[name]
    return {key: array[:] for key, array in group.arrays() if not key.startswith("manifest")}


def assert_same(path: Path, truth: Path) -> None:
    """Two stores hold the same captures of the same prompts in the same order, array by array, and are complete."""
    found, expected = attnlens.open(path), attnlens.open(truth)
    assert found.ids == expected.ids
    for name in expected.ids:
        one, other = found[name].metadata, expected[name].metadata
        assert (one.status, one.prompt_id) == (other.status, other.prompt_id) == ("complete", other.prompt_id)
        assert (one.prompt, one.completion, one.sampling) == (other.prompt, other.completion, other.sampling)
        here, there = arrays(path, name), arrays(truth, name)
        assert here.keys() == there.keys()
        for key in there:
            np.testing.assert_array_equal(here[key], there[key], err_msg=f"{name}/{key}")
