"""`lens plan --prompts` and `--lens-tokens`: totals are those of single plans, and of the stores that captures make."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers as t
import zarr
from typer.testing import CliRunner

from attnlens.capture import capture
from attnlens.capture.batch.asked import Defaults
from attnlens.capture.batch.file import read_prompts
from attnlens.capture.forecast.forecast import Forecast, forecast
from attnlens.capture.forecast.many import ManyForecast, forecast_many
from attnlens.capture.run import CaptureOptions
from attnlens.capture.settings import Settings
from attnlens.cli import app
from attnlens.progress import Silent
from attnlens.schemas.arrays import LENS_ROWS
from attnlens.schemas.errors import InputError, ModelError
from batch_runs import OPTIONS, run
from families import FAMILIES, byte_tokenizer, tiny_model

LINES: list[dict[str, Any]] = [
    {"id": "plain", "prompt": "The quick brown fox"},
    {"id": "few", "prompt": "jumps", "max_new_tokens": 3},
    {"id": "many", "prompt": "over", "max_new_tokens": 40},
    {"id": "given", "prompt": "the lazy dog", "completion": " and is not amused"},
    {"id": "ids", "token_ids": [5, 6, 7, 8]},
]
BAD: list[dict[str, Any]] = [
    {"id": "foreign", "prompt": [1, 2, 9999]},
    {"id": "chat", "messages": [{"role": "user", "content": "Hi"}], "raw": False},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    FAMILIES["llama"]().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def file_of(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def chosen(folder: Path, **options: Any) -> CaptureOptions:
    return CaptureOptions(model=str(folder), **{"output": Path("never.zarr"), **OPTIONS, **options})


def many(folder: Path, prompts: Path, **options: Any) -> ManyForecast:
    return forecast_many(chosen(folder, prompts=prompts, **options), Silent())


def alone(folder: Path, line: dict[str, Any], tmp_path: Path) -> Forecast:
    """The single plan of a line, its options as those of the command line."""
    more: dict[str, Any] = {key: line[key] for key in ("prompt", "completion", "max_new_tokens") if key in line}
    if "token_ids" in line:
        (tmp_path / "ids.json").write_text(json.dumps(line["token_ids"]))
        more["token_ids"] = tmp_path / "ids.json"
    return forecast(chosen(folder, **more), Silent())


def test_totals_are_those_of_single_plans(folder: Path, tmp_path: Path) -> None:
    found = many(folder, file_of(tmp_path / "p.jsonl", [*LINES, *BAD]))
    single = {line["id"]: alone(folder, line, tmp_path) for line in LINES}
    assert {one.id: (one.n_prompt, one.n_new) for one in found.prompts} == {
        name: (plan.n_prompt, plan.n_new) for name, plan in single.items()
    }
    assert single["few"].n_new == 3
    for index, mode in enumerate(found.modes):
        sizes = [plan.modes[index] for plan in single.values()]
        assert {size.mode for size in sizes} == {mode.mode}
        assert mode.raw_bytes == sum(size.raw_bytes for size in sizes) == sum(mode.arrays.values())
        assert mode.disk_bytes == tuple(sum(size.disk_bytes[side] for size in sizes) for side in (0, 1))
    assert (found.raw_bytes, found.disk_bytes) == (found.modes[0].raw_bytes, found.modes[0].disk_bytes)
    largest = max(single, key=lambda name: without_process(single[name].memory))
    assert found.largest == largest == "many"
    assert without_process(found.memory) == without_process(single[largest].memory)


def without_process(memory: dict[str, dict[str, int]]) -> int:
    """The peak without this process, which grows from plan to plan."""
    return sum(size for name, size in memory["host"].items() if name != "Python and libraries")


@pytest.mark.parametrize("attention", ["dense", "qk"])
def test_totals_are_those_of_a_store(folder: Path, tmp_path: Path, attention: str) -> None:
    prompts, store = file_of(tmp_path / "p.jsonl", [*LINES, *BAD]), tmp_path / "run.zarr"
    found = many(folder, prompts, output=store, attention=attention)
    assert not store.exists()
    report = run(store, [*LINES, *BAD], settings=Settings(attention=attention))
    assert [(one.id, one.message) for one in report.failures] == [(one.id, one.message) for one in found.refused]
    planned = next(mode.arrays for mode in found.modes if mode.mode == attention)
    written: dict[str, int] = dict.fromkeys(planned, 0)
    root: Any = zarr.open_group(store, mode="r")
    for _, group in root.groups():
        for name, array in group.arrays():
            if name in written:
                written[name] += math.prod(array.shape) * array.dtype.itemsize
    assert {"attention_max", "lens_token", "token_id"} <= planned.keys()
    assert written == planned


def test_what_a_resumed_capture_would_do(folder: Path, tmp_path: Path) -> None:
    prompts, store = file_of(tmp_path / "p.jsonl", LINES), tmp_path / "run.zarr"
    asked = read_prompts(prompts, Defaults())
    run(store, LINES[:2])
    with pytest.raises(InputError, match=r"run\.zarr"):
        many(folder, prompts, output=store)
    run(tmp_path / "all.zarr", LINES)
    found = many(folder, prompts, output=tmp_path / "all.zarr", resume=True)
    assert found.kept == [one.id for one in asked]
    assert (found.prompts, found.raw_bytes, found.largest, found.peak) == ([], 0, None, {})


def test_what_is_refused_as_a_whole(folder: Path, tmp_path: Path) -> None:
    prompts = file_of(tmp_path / "p.jsonl", LINES)
    with pytest.raises(InputError, match="--prompt and --prompts were given"):
        many(folder, prompts, prompt="Hi")
    with pytest.raises(InputError, match="--buffer is 0"):
        many(folder, prompts, buffer_mib=0)
    t.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4).save_pretrained(tmp_path / "bloom")
    byte_tokenizer().save_pretrained(tmp_path / "bloom")
    plan = many(tmp_path / "bloom", prompts)
    for why in plan.refused_modes.values():
        assert why
        with pytest.raises(ModelError, match="Bloom"):
            many(tmp_path / "bloom", prompts, attention="qk")


def test_page_and_json(folder: Path, tmp_path: Path) -> None:
    prompts = file_of(tmp_path / "p.jsonl", [*LINES, BAD[0]])
    arguments = ["plan", "-m", str(folder), "--prompts", str(prompts), "--raw", "-n", "9", "--quiet"]
    arguments += ["-o", str(tmp_path / "x.zarr"), "--lens-tokens", "generated"]
    page = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert page.exit_code == 1
    assert "lens: prompt foreign (line 6): " in page.stderr
    assert max(map(len, page.stdout.splitlines())) <= 80
    assert "5 prompts to capture, 1 would be refused" in page.stdout
    assert "fill" in page.stdout
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told["raw_bytes"] == sum(one["raw_bytes"] for one in told["prompts"])
    assert told["attention"] == {"dense": 5}
    assert told["refused"][0]["id"] == "foreign"
    assert told["peak"]["host"] == sum(told["memory"]["host"].values())


def test_tokens_that_lenses_do_not_read_lower_the_disk_only(folder: Path, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog " * 2
    options = {"prompt": text, "max_new_tokens": 4}
    whole = forecast(chosen(folder, **options), Silent())
    some = forecast(chosen(folder, **options, lens_tokens="generated"), Silent())
    assert (some.lens_first, whole.lens_first) == (some.n_prompt - 1, 0)
    assert some.modes[0].raw_bytes == whole.modes[0].raw_bytes
    stored = {}
    for which in ("all", "generated"):
        capture(tiny_model("llama"), byte_tokenizer(), text, tmp_path / which, raw=True, max_new_tokens=4,
                lens_tokens=which, temperature=0)  # fmt: skip
        stored[which] = tmp_path / which / "0000"
    read = (some.capacity - some.lens_first) / some.capacity
    for part, other in zip(some.modes[0].arrays, whole.modes[0].arrays, strict=True):
        assert (part.name, part.raw_bytes) == (other.name, other.raw_bytes)
        if part.name not in LENS_ROWS:
            assert part.disk_bytes == other.disk_bytes or "vocabulary" in part.name, part.name
            continue
        assert list(part.disk_bytes) == pytest.approx([side * read for side in other.disk_bytes], abs=2)
        few, every = (sum(f.stat().st_size for f in (stored[w] / part.name / "c").rglob("*") if f.is_file())
                      for w in ("generated", "all"))  # fmt: skip
        array: Any = zarr.open_array(stored["generated"] / part.name, mode="r")
        assert few < every, part.name
        assert part.raw_bytes == math.prod(array.shape) * array.dtype.itemsize
