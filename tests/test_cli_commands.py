"""What the commands print when all is well, and how they leave when interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnlens import cli
from store_sample import Sample

HOSTILE = "[/bold] \x1b[31mred\x07 \u202eback\n$$ [link=x]"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lens", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    Sample().write(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def test_info_is_a_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert run(monkeypatch, "info", store) == 0
    shown = capsys.readouterr().out
    for words in ("run.zarr", "format 1", "complete", "synthetic", "3 layers", "Alice.", "attention_weight", "not fed"):
        assert words in shown


def test_info_shows_a_store_s_texts_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    document = store / "0000" / "zarr.json"
    values = json.loads(document.read_text())
    values["attributes"]["attnlens"] |= {"prompt": HOSTILE, "completion": HOSTILE, "device": HOSTILE, "error": HOSTILE}
    document.write_text(json.dumps(values))
    assert run(monkeypatch, "info", store) == 0
    shown = capsys.readouterr().out
    assert r"[/bold] \x1b[31mred\x07 \u202eback $$ [link=x]" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_info_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert run(monkeypatch, "info", store, "--json") == 0
    (capture,) = json.loads(capsys.readouterr().out)["captures"]
    assert (capture["n_prompt"], capture["n_token"], capture["n_fed"]) == (5, 9, 8)
    weight = next(array for array in capture["arrays"] if array["name"] == "attention_weight")
    assert weight["axes"] == {"layer": 3, "head": 2, "query": 9, "key": 9}


def test_verify_says_ok_and_what_it_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    assert run(monkeypatch, "verify", store, "--quiet") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("ok: ")
    assert "25 arrays" in shown.out
    assert shown.err == ""
    assert run(monkeypatch, "verify", store, "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_verify_says_every_problem_on_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    for array in ("lens_entropy", "attention_max"):
        file = next(path for path in (store / "0000" / array / "c").rglob("*") if path.is_file())
        file.write_bytes(file.read_bytes()[::-1])
    assert run(monkeypatch, "verify", store, "--quiet") == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("0000/lens_entropy") for line in lines)
    assert any(line.startswith("0000/attention_max") for line in lines)
    assert run(monkeypatch, "verify", store, "--quiet", "--json") == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_render_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "render", store) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("run-pictures: 3 pictures in ")
    there = {path.name for path in (tmp_path / "run-pictures").iterdir()}
    assert there == {"attn_0.png", "attn_1.png", "attn_2.png", "index.html"}
    assert shown.err.splitlines()[0] == "pictures … 3 pictures"
    assert "\x1b" not in shown.err


def test_render_again_from_a_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path
) -> None:
    assert run(monkeypatch, "render", store, "-o", tmp_path / "a", "--format", "svg", "--no-gallery", "-q") == 0
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".svg"}
    capsys.readouterr()
    picture = tmp_path / "a" / "attn_1.svg"
    assert run(monkeypatch, "render", store, "--from", picture, "-o", tmp_path / "b") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'b' / 'attn_1.svg'}: the same bytes as {picture}\n"
    assert [path.read_bytes() for path in (tmp_path / "b").iterdir()] == [picture.read_bytes()]


def test_render_as_json_and_options_that_begin_with_a_dash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path
) -> None:
    assert run(monkeypatch, "render", store, "-o", tmp_path / "out", "--queries", "-2:", "--json", "-q") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["count"] == 2
    assert shown.err == ""


def test_ctrl_c_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("attnlens.render.pictures.render", stopped)
    assert run(monkeypatch, "render", store) == 130
    assert capsys.readouterr().err == "lens: interrupted\n"


def test_a_closed_pipe_is_quiet(store: Path) -> None:
    command = f"{sys.executable} -m attnlens info {store} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
