"""What help says, and how wide."""

import re
import sys

import pytest

import attnlens
from attnlens import cli

COMMANDS = (
    "demo",
    "capture",
    "plan",
    "relens",
    "render",
    "view",
    "diff",
    "export",
    "import",
    "info",
    "verify",
    "crop",
    "ls",
    "merge",
    "migrate",
    "pack",
    "unpack",
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lens", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_shows_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(monkeypatch, *command.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"\[/?(bold|dim)\]|\\\[", shown)
    assert "Usage: lens" in shown


def test_help_lists_the_commands_in_the_order_of_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--help")
    shown = capsys.readouterr().out
    listed = [word for word in re.findall(r"^│ (\w+) ", shown, re.MULTILINE) if word in COMMANDS]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("command", ["demo", "capture", "render", "view", "diff", "export"])
def test_help_teaches_by_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run(monkeypatch, command, "--help")
    assert f"lens {command}" in capsys.readouterr().out.split("─╯")[-1]


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"attnlens {attnlens.__version__}\n"


def test_no_command_shows_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch)
    shown = capsys.readouterr()
    assert "demo" in shown.out + shown.err
