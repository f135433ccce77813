"""`lens demo` beside what a demo that was killed has left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import attnlens
from attnlens.capture.prompt import build_prompt
from attnlens.commands import demo as command
from attnlens.store.replacement import begin
from store_sample import Sample
from tiny import TEMPLATE, byte_level_tokenizer, llama


@pytest.mark.parametrize("captures", [0, 1])
def test_a_demo_that_was_killed_is_no_obstacle(
    captures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama(max_position_embeddings=512)
    tokenizer = byte_level_tokenizer(TEMPLATE)
    ids = build_prompt(tokenizer, text=command.DEMO_PROMPT).ids
    first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [token for token in range(384) if token != first]  # two tokens, few pictures
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(command, "DEMO_MODEL", str(tmp_path / "model"))  # the real one is 93 MB far away
    store, beside = tmp_path / "demo" / "run.zarr", tmp_path / "demo" / "run.new.zarr"
    Sample().write(store)
    if captures:
        Sample().write(tmp_path / "new.zarr")
        shutil.copytree(tmp_path / "new.zarr", beside)
    else:
        beside.mkdir()
    begin(beside, store, afresh=False)
    command.demo(tmp_path / "demo", quiet=True)
    assert "answered" in capsys.readouterr().out
    found = attnlens.open(store)
    assert [(one.status, one.metadata.prompt) for one in found] == [("complete", found[0].metadata.prompt)]
    assert "Who is Bob's sister" in found[0].metadata.prompt
    assert sorted(entry.name for entry in (tmp_path / "demo").iterdir()) == ["pictures", "run.zarr"]
