"""Every token becomes one line of visible characters."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens.render.text.emoji import clusters
from attnlens.render.text.legible import legible, legible_bytes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sister", "sister"),
        (" sister", "·sister"),
        ("a b", "a b"),
        ("a  b ", "a··b·"),
        (" ", "<space>"),
        ("  ", "<space×2>"),
        (" " * 300, "<space×300>"),
        ("a" + " " * 16 + "b", "a<space×16>b"),
        ("\n", r"\n"),
        ("\r\n\t", r"\r\n\t"),
        ("\x00\x1b\x7f", "<00><1B><7F>"),
        ("\x85", "<U+0085>"),
        ("a\u200bb", "a<U+200B>b"),
        ("\u202eabc", "<U+202E>abc"),
        ("\u00a0", "<U+00A0>"),
        ("\u2764\ufe0f", "\u2764\ufe0f"),
        ("a\ufe0f", "a<U+FE0F>"),
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f469\u200d\U0001f467"),
        (" \U0001f3c3\u200d\u2642\ufe0f!", "·\U0001f3c3\u200d\u2642\ufe0f!"),
        ("\U0001f469\u200d", "\U0001f469<U+200D>"),
        ("a\u200db", "a<U+200D>b"),
        ("\U0001f468\u200d\u4e2d", "\U0001f468<U+200D>\u4e2d"),
        ("\ud83d", "<U+D83D>"),
        ("\ue000", "<U+E000>"),
        ("e\u0301", "e\u0301"),
        ("\u0301", "◌\u0301"),
        ("e\u0301\u0301\u0301", "e\u0301\u0301<U+0301>"),
        ("$$", "$$"),
        (r"$\frac$", r"$\frac$"),
        ("<b>&amp;", "<b>&amp;"),
        ("\u05e9\u05dc", "\u05e9\u05dc"),
        ("\ufffd", "\ufffd"),
        ("", "<empty>"),
    ],
)
def test_table(text: str, shown: str) -> None:
    assert legible(text) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b" Bob", "·Bob"),
        (b"\xe2\x80", "<E2><80>"),
        ("中".encode()[:2], "<E4><B8>"),
        (b"a\xffb", "a<FF>b"),
        ("中".encode(), "中"),
        (b"\xed\xa0\x80", "<ED><A0><80>"),
        (b"\x00", "<00>"),
        (b"", "·text"),
    ],
)
def test_fragments_of_characters_show_their_bytes(raw: bytes, shown: str) -> None:
    assert legible_bytes(raw, " text") == shown


def visible(text: str) -> bool:
    return bool(text) and all(
        character == " " or unicodedata.category(character)[0] in "LMNPS" for character in text
    ) and not text.startswith(" ")  # fmt: skip


@given(st.text(st.characters(), min_size=0, max_size=120))
def test_any_text_is_visible_and_short(text: str) -> None:
    shown = legible(text)
    assert visible(shown)
    assert shown.endswith("…") or len(text) <= 96 or not text.strip(" ")


@given(st.binary(max_size=600))
def test_any_bytes_are_visible(raw: bytes) -> None:
    assert visible(legible_bytes(raw, "text"))


def test_long_tokens_are_cut() -> None:
    assert legible("x" * 300) == "x" * 96 + "…"
    assert legible_bytes("é".encode() * 3000, "") == "é" * 96 + "…"


@pytest.mark.parametrize(
    "sequence",
    [
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\U0001f44d\U0001f3fd",
        "\U0001f1e9\U0001f1ea",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "1\ufe0f\u20e3",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ],
)
def test_an_emoji_is_one_character(sequence: str) -> None:
    assert clusters(f"a{sequence}{sequence}b") == ["a", sequence, sequence, "b"]


@given(
    st.text(
        alphabet=st.sampled_from("a1\u200d\ufe0f\u20e3\u2764\U0001f469\U0001f3fd\U0001f1e9\U000e007f\u0301"),
        max_size=12,
    )
)
def test_nothing_is_lost_between_characters(text: str) -> None:
    assert "".join(clusters(text)) == text
