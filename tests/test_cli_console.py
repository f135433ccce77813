"""Text made safe for a terminal, and progress on terminals and elsewhere."""

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens import console
from attnlens.console import PlainProgress, human_bytes, one_line, open_progress, printable
from attnlens.progress import Silent

ANY_TEXT = st.text(st.characters(codec=None, categories=None))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold]text[/bold] $$", "plain [bold]text[/bold] $$"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("right\u202eleft", r"right\u202eleft"),
        ("half \ud83d", r"half \ud83d"),
        ("été 日本 👩\u200d🚀", "été 日本 👩\u200d🚀"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY_TEXT)
def test_nothing_a_terminal_obeys_is_left(text: str) -> None:
    shown = one_line(text)
    assert "\n" not in shown
    shown.encode()
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"} == set()


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3_250_000, "3.1 MiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_human_bytes(count: int, said: str) -> None:
    assert human_bytes(count) == said


def test_quiet_is_silent() -> None:
    with open_progress(quiet=True, stream=Terminal()) as progress:
        assert isinstance(progress, Silent)


def test_plain_lines_have_rates_and_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0, 102.0, 103.0, 104.0, 105.0, 105.0])
    monkeypatch.setattr(console, "_now", lambda: next(now))
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.stage("loading")
    progress.stage("decode", total=8, unit="tokens")
    progress.advance(8, note="2.0 MiB written")
    progress.stage("pictures", total=2, unit="pictures")
    progress.end()
    progress.end()
    assert stream.getvalue().splitlines() == [
        "loading …",
        "loading: 2.0 s",
        "decode … 8 tokens",
        "decode: 8 tokens in 2.0 s, 4.0 tokens/s, 2.0 MiB written",
        "pictures … 2 pictures",
        "pictures: 0.0 s",
    ]


def test_a_long_stage_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 31.0, 31.0, 31.0, 31.5])
    monkeypatch.setattr(console, "_now", lambda: next(now))
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.stage("decode", unit="tokens")
    progress.advance(62)
    assert stream.getvalue().splitlines()[-1] == "decode: 62 tokens in 31.0 s, 2.0 tokens/s so far"


def test_the_same_stage_again_goes_on() -> None:
    stream = io.StringIO()
    with open_progress(stream=stream) as progress:
        progress.stage("loading")
        progress.stage("loading", total=3, unit="files")
        progress.advance(3)
    assert re.fullmatch(r"loading …\nloading: 3 files in 0\.\d s, .* files/s\n", stream.getvalue())


def test_terminal_shows_stages_text_and_leaves_the_cursor() -> None:
    stream = Terminal()
    with open_progress(stream=stream) as progress:
        progress.stage("loading")
        progress.stage("decode", total=4, unit="tokens")
        progress.advance(2, note="[red]1.0 MiB\x1b written")
    shown = stream.getvalue()
    assert "decode" in shown
    assert "2/2" in shown.replace(" ", "") or "2/4" in shown
    assert r"[red]1.0 MiB\x1b" in shown
    assert shown.rstrip().endswith("\x1b[?25h")


def test_terminal_is_left_clean_by_an_error() -> None:
    stream = Terminal()
    with pytest.raises(ZeroDivisionError):
        fail(stream)
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")


def fail(stream: Terminal) -> None:
    with open_progress(stream=stream) as progress:
        progress.stage("decode")
        raise ZeroDivisionError
