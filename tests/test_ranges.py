"""The one syntax for lists of numbers, against Python's own slicing, and every option that takes one."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import attnlens
from attnlens.capture.settings import Settings
from attnlens.cli import app
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import AttnlensError, InputError
from attnlens.schemas.ranges import parse_ids, parse_ranges, runs_of, split_pair
from attnlens.store.tools.crop import crop
from store_sample import Sample

SIZE = 20
ends = st.one_of(st.none(), st.integers(-30, 30))


def pick(text: str, size: int = 10) -> list[int]:
    return list(parse_ranges(text, size, option="--heads", thing="head"))


@st.composite
def items(draw: st.DrawFn) -> tuple[str, list[int]]:
    """One part of a list and what Python makes of it."""
    there = list(range(SIZE))
    kind = draw(st.sampled_from(["number", "range", "slice"]))
    if kind == "number":
        number = draw(st.integers(-SIZE, SIZE - 1))
        return str(number), [there[number]]
    if kind == "range":
        first = draw(st.integers(0, SIZE - 1))
        last = draw(st.integers(first, SIZE - 1))
        return f"{first}-{last}", there[first : last + 1]
    start, stop, step = draw(ends), draw(ends), draw(st.one_of(st.none(), st.integers(1, 9), st.integers(-9, -1)))
    tail = "" if step is None else f":{step}"
    return f"{'' if start is None else start}:{'' if stop is None else stop}{tail}", there[start:stop:step]


@given(st.lists(items(), min_size=1, max_size=4), st.sampled_from([",", " , "]))
def test_lists_are_what_python_makes_of_their_parts(parts: list[tuple[str, list[int]]], comma: str) -> None:
    text, expected = comma.join(part for part, _ in parts), sorted({n for _, numbers in parts for n in numbers})
    if expected:
        assert pick(text, SIZE) == expected
    else:
        with pytest.raises(InputError, match=r"selects no head: there are 20 heads \(0 … 19\)"):
            pick(text, SIZE)


@given(st.text(alphabet="0123456789-:,. ٣a", max_size=8))
def test_any_text_is_numbers_or_an_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        assert set(pick(text)) <= set(range(10))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "1,,2",
        "1.5",
        "--3",
        "1-",
        "5-3",
        "::0",
        "٣",
        "9" * 40,
        "-99",
        "10",
        "0-10",
        "8-10",
        "-5--3",
        "3,",
        "9:2",
    ],
)
def test_other_texts_say_what_is_expected(text: str) -> None:
    with pytest.raises(InputError, match=re.escape("--heads")) as told:
        pick(text)
    assert "\n" not in str(told.value)


def test_no_text_and_nothing_to_choose_from_are_said() -> None:
    with pytest.raises(InputError, match=r"--heads 3 is no text"):
        parse_ranges(3, 10, option="--heads", thing="head")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no head"):
        pick("0", 0)
    assert runs_of([1, 2, 3, 7]) == [[1, 4], [7, 8]]


def test_ids_keep_their_order_and_have_no_end_to_count_from() -> None:
    assert parse_ids("17,4-6, 2", option="--x", most=9) == (17, 4, 5, 6, 2)
    for bad in ("-1", "3:", ":", "6-4", "", "a", "0-99"):
        with pytest.raises(InputError, match="--x "):
            parse_ids(bad, option="--x", most=9)


def test_a_layer_and_a_head_are_written_with_a_dot() -> None:
    assert split_pair("17.4", option="--map") == split_pair("17:4", option="--map") == ("17", "4")
    assert split_pair(" -1.-2 ", option="--map") == ("-1", "-2")
    assert split_pair("17", option="--map") == ("17", "")
    assert split_pair("17:mean", option="--map") == ("17", "mean")
    for bad in ("17.4,18.6", "17.", "17:", "5-7", "1,2", ".4", ":4", "17.4.2", "17.mean", ""):
        with pytest.raises(InputError, match=r"^--map .* \(17\), or a layer and a head \(17\.4\)$"):
            split_pair(bad, option="--map")


def test_lenses_read_from_a_token_of_the_prompt_on() -> None:
    for text, first in [("all", 0), ("generated", 11), ("last:3", 9), ("-3:", 9), ("-99:", 0), ("0:", 0), ("5:", 5)]:
        assert Settings(lens_tokens=text).lens_first(12) == first
    with pytest.raises(InputError, match=r"'12:': the prompt has 12 tokens.*0: to 11:"):
        Settings(lens_tokens="12:").lens_first(12)
    for bad in ("5", ":5", "5:7", "last:0", "-0:", "5-7", ""):
        with pytest.raises(InputError, match="expected all, generated, N:"):
            Settings(lens_tokens=bad).check()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranges") / "run.zarr"
    Sample(n_prompt=9, n_generated=5, n_layer=4, n_head=3).write(path)
    return path


FORMS = {"-1": [-1], "1-2": [1, 2], "0,2-3": [0, 2, 3], "::2": [0, 2], ":1": [0], "-1:": [-1]}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("option", ["--layers", "--tokens"])
def test_crop_on_the_command_line_takes_every_form(store: Path, tmp_path: Path, form: str, option: str) -> None:
    done = CliRunner().invoke(app, ["crop", str(store), option, form, "-o", str(tmp_path / "c.zarr")])
    assert done.exit_code == 0, done.output
    about = attnlens.open(tmp_path / "c.zarr")[0].metadata.crop
    assert about is not None
    runs, size = (about.layers, 4) if option == "--layers" else (about.tokens, 14)
    expected = list(range(14))[::2] if (option, form) == ("--tokens", "::2") else [n % size for n in FORMS[form]]
    assert [n for low, high in runs or () for n in range(low, high)] == expected


@pytest.mark.parametrize("option", ["--queries", "--layers", "--tokens", "--heads", "--map"])
def test_values_that_begin_with_a_minus_are_values(store: Path, tmp_path: Path, option: str) -> None:
    arguments = ["render", str(store), option, "-1", "-o", str(tmp_path / "p"), "--workers", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    bad = CliRunner().invoke(app, [*arguments[:3], "-99", *arguments[4:]])
    assert isinstance(bad.exception, AttnlensError)
    assert str(bad.exception).startswith(f"{option} -99")


def test_a_map_is_named_with_a_dot_or_as_before(store: Path, tmp_path: Path) -> None:
    for name, text in (("a", "3.1"), ("b", "3:1"), ("c", "-1.-2")):
        render(store, tmp_path / name, options=RenderOptions(map=text), gallery=False)
    names = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in "abc"]
    assert names[0] == names[1] == names[2] == ["map_l3_h1_0_0.png"]


def test_a_redaction_takes_lists_and_refuses_what_could_be_both(store: Path, tmp_path: Path) -> None:
    path = crop(store, tmp_path / "a.zarr", redact=["3,5-7,-1"]).path
    gone = attnlens.open(path)[0]["token_id"][:] == -1
    assert set(np.flatnonzero(gone)) >= {3, 5, 6, 7, 13}
    text = b"".join(map(attnlens.open(store)[0].token_bytes, range(14))).decode()
    digit = next((letter for letter in text if letter.isdecimal()), None)
    assert digit is not None, "the sample's text has a digit"
    with pytest.raises(InputError, match=rf"--redact {digit}: .* has this text.*text:{digit} or tokens:{digit}"):
        crop(store, tmp_path / "b.zarr", redact=[digit])
    assert crop(store, tmp_path / "c.zarr", redact=[f"tokens:{digit}"]).captures == ["0000"]


def test_help_says_lists_in_the_same_words() -> None:
    for command, count in (("crop", 4), ("render", 3), ("diff", 2)):
        shown = re.sub(r"[\s│]+", " ", CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "160"}).output)
        assert shown.count("3,5-7 or 10:20:2 or -1") == count, command
