"""Many prompts in one store: order, ids, seeds, failures, and going on with what is not complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnlens
from attnlens.capture import capture, probe
from attnlens.capture.batch.asked import seed_of
from attnlens.capture.settings import Settings
from attnlens.info_page import print_page
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.info import describe
from attnlens.store.verify import verify
from batch_runs import OPTIONS, arrays, assert_same, model, prompts, run
from families import byte_tokenizer

N = 4


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "run.zarr"
    report = run(path, prompts(N))
    assert (len(report.captures), report.failures, report.left) == (N, [], 0)
    return path


def test_one_capture_each_in_order_under_its_id(truth: Path) -> None:
    store = attnlens.open(truth)
    assert store.ids == [f"{number:04d}" for number in range(N)]
    for number, asked in enumerate(prompts(N)):
        found = store[asked["id"]]
        assert found is store[number]
        assert (found.metadata.prompt_id, found.metadata.prompt) == (asked["id"], asked["prompt"])
        assert found.metadata.sampling.seed == seed_of(5, asked["id"])
    assert [entry.prompt_id for entry in store.metadata.index or []] == [asked["id"] for asked in prompts(N)]
    assert not verify(truth).problems
    assert not list(truth.rglob("*.partial"))


def test_a_prompt_comes_out_as_if_it_were_alone(truth: Path, tmp_path: Path) -> None:
    asked = prompts(N)[2]
    capture(
        model(),
        byte_tokenizer(),
        asked["prompt"],
        tmp_path / "one.zarr",
        **{**OPTIONS, "seed": seed_of(5, asked["id"])},
    )
    alone, among = arrays(tmp_path / "one.zarr", "0000"), arrays(truth, "0002")
    assert alone.keys() == among.keys()
    for name in alone:
        np.testing.assert_array_equal(alone[name], among[name], err_msg=name)


def test_order_changes_nothing(truth: Path, tmp_path: Path) -> None:
    run(tmp_path / "back.zarr", prompts(N)[::-1])
    store, back = attnlens.open(truth), attnlens.open(tmp_path / "back.zarr")
    for asked in prompts(N):
        np.testing.assert_array_equal(back[asked["id"]].token_id, store[asked["id"]].token_id)


def test_commands_know_the_ids(truth: Path, tmp_path: Path) -> None:
    asked = prompts(N)[3]["id"]
    assert [one.prompt_id for one in describe(truth, asked).captures] == [asked]
    report = render(truth, tmp_path / "pictures", options=RenderOptions(capture=asked, queries="3"))
    assert report.count > 0
    with pytest.raises(AbsentError, match="no capture 'nobody'"):
        describe(truth, "nobody")


def test_a_name_goes_before_an_id(tmp_path: Path) -> None:
    run(tmp_path / "run.zarr", [{"id": "0001", "prompt": "a"}, {"id": "0000", "prompt": "b"}], max_new_tokens=1)
    store = attnlens.open(tmp_path / "run.zarr")
    assert store["0001"].metadata.prompt == "b"
    assert store["id:0001"].metadata.prompt == "a"


def test_failures_are_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    good = prompts(2)
    long, foreign = {"id": "long", "prompt": "x" * 500}, {"id": "foreign", "prompt": [1, 2, 9999]}
    chat = {"id": "chat", "messages": [{"role": "user", "content": "Hi"}], "raw": False}
    report = run(path, [long, good[0], foreign, chat, good[1]], family="gpt2")
    assert [one.id for one in report.failures] == ["long", "foreign", "chat"]
    assert "prompt long (prompt 0): the prompt is 501 tokens long" in str(report.failures[0])
    assert (len(report.captures), report.left) == (2, 0)
    store = attnlens.open(path)
    assert [found.status for found in store] == ["failed", "complete", "failed", "failed", "complete"]
    assert "the model's context holds 128" in (store["long"].metadata.error or "")
    assert "chat template" in (store["chat"].metadata.error or "")
    assert json.loads(store["foreign"].metadata.prompt) == [1, 2, 9999]
    assert store["long"].n_token == 0
    with pytest.raises(AbsentError, match="the capture is failed"):
        store["long"]["token_text"]
    assert not verify(path).problems
    assert render(path, tmp_path / "pictures", options=RenderOptions(queries="3")).count > 0
    kept = (path / "0001" / "zarr.json").stat().st_mtime_ns
    again = run(path, [long, good[0], foreign, chat, good[1]], family="gpt2", resume=True)
    assert [one.id for one in again.failures] == ["long", "foreign", "chat"]
    assert (again.captures, again.kept) == ([], [good[0]["id"], good[1]["id"]])
    assert (path / "0001" / "zarr.json").stat().st_mtime_ns == kept


def test_resume_does_what_is_missing_partial_or_failed(truth: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    assert run(path, prompts(N), resume=True).left == 0  # begins where nothing is
    for name, change in {"0000": {"status": "partial"}, "0001": {"status": "failed", "error": "x"}}.items():
        document = json.loads((path / name / "zarr.json").read_text())
        document["attributes"]["attnlens"].update(change)
        (path / name / "zarr.json").write_text(json.dumps(document))
    (path / "0003" / "zarr.json").unlink()
    whole = (path / "0002" / "zarr.json").stat().st_mtime_ns
    report = run(path, prompts(N), resume=True)
    assert [one.capture_id for one in report.captures] == ["0000", "0001", "0003"]
    assert (path / "0002" / "zarr.json").stat().st_mtime_ns == whole
    assert_same(path, truth)
    assert not verify(path).problems
    assert run(path, prompts(N), resume=True).captures == []


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (prompts(N)[:-1], {}, "is missing"),
        ([*prompts(N), {"id": "more", "prompt": "a"}], {}, "prompt 'more' is new"),
        ([*prompts(N)[1:], prompts(N)[0]], {}, "in another order"),
        ([*prompts(N)[:-1], {**prompts(N)[-1], "prompt": "other"}], {}, "is not what it was"),
        ([*prompts(N)[:-1], {**prompts(N)[-1], "top_p": 0.5}], {}, "is not what it was"),
        (prompts(N), {"settings": Settings(top_k=2)}, "top_k was 5, now it is 2"),
        (prompts(N), {"seed": 6}, "seed was 5, now it is 6"),
        (prompts(N), {"seam": "whole"}, "seam was 'prompt', now it is 'whole'"),
        ([*prompts(N)[:-1], {**prompts(N)[-1], "seam": "whole"}], {}, "is not what it was"),
        (prompts(N), {"model_id": "another"}, "model was 'LlamaForCausalLM', now it is 'another'"),
    ],
)
def test_resume_of_something_else_is_refused(truth: Path, asked: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match="cannot resume") as refusal:
        run(truth, asked, resume=True, **options)
    assert message in str(refusal.value)


def test_a_store_that_is_there(truth: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"exists: give another store, or resume=True"):
        run(truth, prompts(N))
    with pytest.raises(InputError, match="expected one of them"):
        run(truth, prompts(N), resume=True, append=True)
    path = tmp_path / "run.zarr"
    capture(model(), byte_tokenizer(), "One", path, **OPTIONS)
    with pytest.raises(InputError, match="not made from many prompts"):
        run(path, prompts(2), resume=True)
    run(path, prompts(2), append=True)
    run(path, [{"id": "x", "prompt": "y"}], append=True, max_new_tokens=1)
    assert attnlens.open(path).ids == ["0000", "0001", "0002", "0003"]
    assert attnlens.open(path)[prompts(2)[1]["id"]].id == "0002"
    assert run(path, prompts(2), resume=True).kept == [one["id"] for one in prompts(2)]
    run(path, [{"id": "x", "prompt": "y"}], overwrite=True, max_new_tokens=1)
    assert attnlens.open(path).ids == ["0000"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.zarr"]
    assert not verify(path).problems


def test_the_model_is_probed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[int] = []
    real = probe.probe

    def counted(*args: Any, **kwargs: Any) -> Any:
        probes.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr("attnlens.capture.session.probe", counted)
    run(tmp_path / "run.zarr", prompts(3), max_new_tokens=1)
    assert len(probes) == 1


def test_info_lists_many_captures_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = [{"id": f"question-{number}", "prompt": "why " * 9} for number in range(7)]
    run(tmp_path / "run.zarr", [*asked, {"id": "too long", "prompt": "x" * 500}], family="gpt2", max_new_tokens=1)
    print_page(describe(tmp_path / "run.zarr"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("0003 ") and "question-3" in line and "complete" in line for line in lines)
    assert any(line.startswith("0007 ") and "too long" in line and "failed" in line for line in lines)
