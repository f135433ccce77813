"""One bad line of a file of prompts is that prompt's failure: recorded, planned for, resumed, told by the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import attnlens
from attnlens.capture import capture_many
from attnlens.cli import app
from attnlens.schemas.errors import InputError
from attnlens.store.verify import verify
from batch_runs import model
from families import byte_tokenizer

LINES = (
    '{"id": "first", "prompt": "The quick"}',
    '{"id": "empty", "prompt": ""}',
    '{"id": "first", "prompt": "again"}',
    '{"prompt": "cut',
    "",
    '{"id": "typo", "promt": "brown"}',
    '{"id": "last", "prompt": "fox"}',
)
FAILED = {
    "empty": "prompt is empty",
    "line-3": "the id 'first' was given before (line 1)",
    "line-4": "no valid JSON",
    "typo": "unknown key 'promt'",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_the_rest_of_the_file_goes_on(folder: Path, tmp_path: Path) -> None:
    prompts, store = tmp_path / "prompts.jsonl", tmp_path / "run.zarr"
    prompts.write_text("\n".join(LINES) + "\n")
    arguments = ["-m", str(folder), "--prompts", str(prompts), "-o", str(store), "-n", "2", "--raw", "--quiet"]
    planned = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert planned.exit_code == 1
    refused = {one["id"]: one["message"] for one in json.loads(planned.stdout)["refused"]}
    made = CliRunner().invoke(app, ["capture", *arguments])
    assert made.exit_code == 1
    assert "captured 2 of 6 prompts, 4 failed" in made.stdout
    found = attnlens.open(store)
    assert [(one.metadata.prompt_id, one.status) for one in found] == [
        ("first", "complete"),
        ("empty", "failed"),
        ("line-3", "failed"),
        ("line-4", "failed"),
        ("typo", "failed"),
        ("last", "complete"),
    ]
    for name, said in FAILED.items():
        assert said in (found[name].metadata.error or "")
        assert said in refused[name]
        assert f"lens: prompt {name} (line " in made.stderr
    assert found["line-4"].metadata.prompt == '{"prompt": "cut'
    assert not verify(store).problems
    kept = (store / "0005" / "zarr.json").stat().st_mtime_ns
    again = CliRunner().invoke(app, ["capture", *arguments, "--resume"])
    assert again.exit_code == 1
    assert "captured 0 of 6 prompts, 2 were complete, 4 failed" in again.stdout
    assert (store / "0005" / "zarr.json").stat().st_mtime_ns == kept
    prompts.write_text("\n".join([*LINES[:-1], LINES[-1].replace("fox", "dog")]) + "\n")
    other = CliRunner().invoke(app, ["capture", *arguments, "--resume"])
    assert "prompt 'last' is not what it was" in str(other.exception)


def test_a_file_of_bad_lines_alone_writes_nothing(folder: Path, tmp_path: Path) -> None:
    prompts, store = tmp_path / "prompts.jsonl", tmp_path / "run.zarr"
    prompts.write_text(LINES[1] + "\n" + LINES[3] + "\n")
    for command in ("plan", "capture"):
        said = CliRunner().invoke(app, [command, "-m", str(folder), "--prompts", str(prompts), "-o", str(store)])
        assert isinstance(said.exception, InputError)
        assert "line 1: prompt is empty; line 2: no valid JSON" in str(said.exception)
    assert not store.exists()


def test_from_python(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    prompts: list[Any] = [
        "The quick",
        "",
        {"id": "x", "prompt": [1, "a"]},
        [{"role": "user"}],
        {"prompt": "fox", "id": "prompt-1"},
    ]
    report = capture_many(model(), tokenizer, prompts, tmp_path / "run.zarr", raw=True, max_new_tokens=1)
    assert [one.capture_id for one in report.captures] == ["0000", "0004"]
    assert [(one.id, one.where) for one in report.failures] == [
        ("prompt-1-2", "prompt 1"),
        ("x", "prompt 2"),
        ("prompt-3", "prompt 3"),
    ]
    with pytest.raises(InputError, match="the prompts: prompt 0: prompt is empty; prompt 1: prompt is empty"):
        capture_many(model(), tokenizer, ["", " "], tmp_path / "none.zarr", raw=True)
    assert not (tmp_path / "none.zarr").exists()
