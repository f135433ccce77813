"""Options of `lens capture` that say how words become tokens: the command does as Python does, and the plan agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import attnlens
from attnlens.capture.forecast.forecast import forecast
from attnlens.capture.run import CaptureOptions, run
from attnlens.progress import Silent
from attnlens.schemas.errors import InputError
from tiny import byte_level_tokenizer, write_hf

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.name }};{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Alice and B"}]
WHO = {"name": "who"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_hf(path, template=TEMPLATE)
    return path


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def ids(text: str) -> list[int]:
    return list(byte_level_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_messages_tools_continuation_and_seam(folder: Path, tmp_path: Path) -> None:
    options = CaptureOptions(
        model=str(folder),
        output=tmp_path / "run.zarr",
        messages=written(tmp_path / "talk.json", TALK),
        tools=written(tmp_path / "tools.json", [WHO]),
        continue_last=True,
        completion="ob are",
        seam="whole",
    )
    planned = forecast(options, Silent())
    report = run(options, Silent())
    found = attnlens.open(options.output)[0]
    whole = ids("who;[user]Who?<end>[assistant]Alice and Bob are")
    assert found.token_id.tolist() == whole
    assert (found.metadata.seam, found.metadata.continued) == ("whole", True)
    assert (found.metadata.messages, found.metadata.tools) == (TALK, [WHO])
    assert planned.n_prompt == report.n_prompt == found.n_prompt
    assert planned.capacity == len(whole)
    assert found.metadata.prompt == "who;[user]Who?<end>[assistant]Alice and Bob"
    assert found.metadata.completion == " are"


def test_tools_that_lie_with_the_messages(folder: Path, tmp_path: Path) -> None:
    talk = written(tmp_path / "talk.json", {"messages": TALK[:1], "tools": [WHO]})
    options = CaptureOptions(model=str(folder), output=tmp_path / "run.zarr", messages=talk, max_new_tokens=1)
    run(options, Silent())
    assert attnlens.open(options.output)[0].metadata.prompt == "who;[user]Who?<end>[assistant]"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prompt": "Who?", "continue_last": True}, "--continue was given with --prompt"),
        ({"messages": {"messages": TALK, "tools": [WHO]}, "tools": [WHO]}, "talk.json holds tools too"),
        ({"messages": TALK[:1], "continue_last": True}, "it is the user's: expected the assistant's"),
        ({"prompt": "Who?", "raw": True, "tools": [WHO]}, "but raw was asked for"),
        ({"prompt": "Who?", "tools": []}, "tools.json: expected a JSON list of tools"),
        ({"prompt": "Who?", "seam": "both"}, "seam is 'both', expected prompt or whole"),
    ],
)
def test_what_is_refused_leaves_nothing(folder: Path, tmp_path: Path, more: dict[str, Any], said: str) -> None:
    names = {"messages": "talk.json", "tools": "tools.json"}
    files = {key: written(tmp_path / name, more[key]) for key, name in names.items() if key in more}
    options = CaptureOptions(model=str(folder), output=tmp_path / "run.zarr", **{**more, **files})
    for do in (forecast, run):
        with pytest.raises(InputError) as refusal:
            do(options, Silent())
        assert said in str(refusal.value)
    assert not options.output.exists()
