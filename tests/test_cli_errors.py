"""What a person gets wrong: one clear line on stderr, exit code 1, no traceback, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from attnlens import cli
from store_sample import Sample


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Lens = Callable[..., Outcome]


@pytest.fixture
def lens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lens:
    """Runs the command in this process, entry point included."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return Outcome(int(left.value.code or 0), out, err)

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """3 layers, 2 heads, 9 tokens, 8 of them fed."""
    Sample().write(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def refused(outcome: Outcome, *words: str, code: int = 1) -> None:
    assert outcome.code == code, outcome
    assert outcome.err.startswith("lens: "), outcome
    assert outcome.err.count("\n") == 1, outcome
    for word in words:
        assert word in outcome.err, outcome


def edit_metadata(document: Path, **changes: object) -> None:
    values = json.loads(document.read_text())
    values["attributes"]["attnlens"].update(changes)
    document.write_text(json.dumps(values))


@pytest.mark.parametrize("command", ["info", "verify", "render"])
def test_no_store(lens: Lens, tmp_path: Path, command: str) -> None:
    refused(lens(command, tmp_path / "nothing.zarr"), "nothing.zarr", "no such store")


@pytest.mark.parametrize("command", ["info", "verify", "render"])
def test_not_a_store(lens: Lens, tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    refused(lens(command, tmp_path / "folder"), "folder", "is not")
    (tmp_path / "file").write_text("x")
    refused(lens(command, tmp_path / "file"), "file")


@pytest.mark.parametrize("command", ["info", "verify", "render"])
def test_newer_version_names_both_and_the_remedy(lens: Lens, store: Path, command: str) -> None:
    edit_metadata(store / "zarr.json", version=7)
    refused(lens(command, store), "version 7", "version 1", "upgrade")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--window", "0"], "--window 0"),
        (["--step", "-1"], "--step -1"),
        (["--heads", "2"], "2 heads (0 … 1)"),
        (["--heads", "mode"], "mode"),
        (["--layers", "9"], "3 layers (0 … 2)"),
        (["--queries", "400"], "--queries 400"),
        (["--queries", "8"], "was not fed"),
        (["--cmap", "cowarm"], "cowarm"),
        (["--dpi", "0"], "--dpi 0"),
        (["--capture", "0009"], "0009"),
    ],
)
def test_render_options_that_cannot_be_used(
    lens: Lens, store: Path, tmp_path: Path, options: list[str], word: str
) -> None:
    refused(lens("render", store, "-o", tmp_path / "out", *options), word)
    assert not (tmp_path / "out").exists()


def test_output_folder_that_cannot_be_made(lens: Lens, store: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    refused(lens("render", store, "-o", tmp_path / "taken" / "pictures"), "taken")
    refused(lens("render", store, "-o", tmp_path / "taken"), "taken")
    assert (tmp_path / "taken").read_text() == "a file"


def test_truncated_shard(lens: Lens, store: Path, tmp_path: Path) -> None:
    shard = next(
        path for path in sorted((store / "0000/attention_max").rglob("*")) if "c" in path.parts and path.is_file()
    )
    shard.write_bytes(shard.read_bytes()[:-7])
    refused(lens("render", store, "-q", "-o", tmp_path / "out"), "0000/attention_max", "lens verify")
    verified = lens("verify", store)
    assert verified.code == 1
    assert "0000/attention_max" in verified.out + verified.err


def test_flipped_byte_is_named_by_verify(lens: Lens, store: Path) -> None:
    chunk = next(
        path for path in sorted((store / "0000/lens_entropy").rglob("*")) if "c" in path.parts and path.is_file()
    )
    data = bytearray(chunk.read_bytes())
    data[len(data) // 3] ^= 0x10
    chunk.write_bytes(data)
    verified = lens("verify", store)
    assert verified.code == 1
    assert "0000/lens_entropy" in verified.out + verified.err
    assert chunk.relative_to(store / "0000/lens_entropy").as_posix() in verified.out + verified.err


CAPTURE = ("capture", "-m", "smollm2-135m", "--quiet")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["no prompt", "-p"]),
        (["-p", "a", "--prompt-file", "b"], ["--prompt", "--prompt-file"]),
        (["-p", "a", "--completion", "b", "--token-ids", "c"], ["--completion", "--token-ids"]),
        (["-p", "a", "--top-k", "0"], ["top"]),
        (["-p", "a", "--top-p", "1.5"], ["1.5"]),
        (["-p", "a", "--temperature", "-1"], ["-1"]),
        (["-p", "a", "--max-new-tokens", "-3"], ["-3"]),
        (["-p", "a", "--buffer", "0"], ["--buffer"]),
        (["--prompt-file", "nowhere.txt"], ["nowhere.txt"]),
        (["--messages", "nowhere.json"], ["nowhere.json"]),
        (["-p", "a", "--token-ids", "nowhere.json"], ["nowhere.json"]),
        (["-p", "a", "--quantize", "3bit"], ["3bit", "8bit"]),
        (["-p", "a", "--dtype", "float8"], ["float8", "bfloat16"]),
        (["-p", "a", "--device", "abacus"], ["abacus"]),
    ],
)
def test_capture_options_that_cannot_be_used(lens: Lens, tmp_path: Path, options: list[str], words: list[str]) -> None:
    refused(lens(*CAPTURE, "-o", tmp_path / "run.zarr", *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_store_exists(lens: Lens, store: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in store.rglob("*"))
    refused(lens(*CAPTURE, "-p", "a", "-o", store), "run.zarr", "--append", "--overwrite")
    assert sorted(path.stat().st_mtime_ns for path in store.rglob("*")) == before


def test_overwrite_deletes_nothing_that_is_not_a_store(lens: Lens, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    refused(lens(*CAPTURE, "-p", "a", "-o", tmp_path / "thesis", "--overwrite"), "thesis", "not an attnlens store")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_no_such_model(lens: Lens, tmp_path: Path) -> None:
    missing = tmp_path / "no-such-folder" / "model"
    refused(lens("capture", "-m", missing, "-p", "a", "-o", tmp_path / "run.zarr", "--quiet"), "no-such-folder")
    (tmp_path / "empty").mkdir()
    refused(lens("capture", "-m", tmp_path / "empty", "-p", "a", "-o", tmp_path / "run.zarr", "--quiet"), "empty")
    assert not (tmp_path / "run.zarr").exists()


BLOCKED = """
import importlib.util, sys
real = importlib.util.find_spec
hidden = {"torch", "transformers", "accelerate"}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in hidden else real(name, package)
from attnlens.cli import main
main()
"""


def as_process(*arguments: object, code: str | None = None) -> Outcome:
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "attnlens"]
    done = subprocess.run([*start, *map(str, arguments)], capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("arguments", [("capture", "-m", "x", "-p", "a", "-o", "run.zarr"), ("demo",)])
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused(as_process(*arguments, code=BLOCKED), "torch", "pip install 'attnlens[capture]'")


def test_everything_but_capturing_works_without_the_extra(store: Path, tmp_path: Path) -> None:
    for arguments in (("info", store), ("verify", store), ("render", store, "-o", tmp_path / "out")):
        outcome = as_process(*arguments, code=BLOCKED)
        assert outcome.code == 0, outcome
    assert list((tmp_path / "out").glob("attn_*.png"))


def test_as_a_process(tmp_path: Path, store: Path) -> None:
    refused(as_process("info", tmp_path), "is not")
    refused(as_process("render", store, "-o", tmp_path / "out", "--window", "0"), "--window 0")


@pytest.mark.parametrize(
    "arguments", [("render",), ("nonsense",), ("render", "a", "--dpi", "many"), ("info", "--what")]
)
def test_usage_errors_are_2(arguments: tuple[str, ...]) -> None:
    outcome = as_process(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_a_message_is_one_line_of_plain_text(lens: Lens, tmp_path: Path) -> None:
    hostile = tmp_path / "two\nlines \x1b[31m[/red].zarr"
    outcome = lens("info", hostile)
    refused(outcome, r"\x1b[31m[/red].zarr")
    assert "\x1b" not in outcome.err
