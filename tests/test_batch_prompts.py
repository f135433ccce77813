"""A file of prompts: what its lines may say, and what is said of lines that cannot be used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens.capture.batch.asked import Asked, Defaults, ask, seed_of
from attnlens.capture.batch.file import read_prompts
from attnlens.capture.batch.launch import read_launch
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.settings import Generation
from attnlens.schemas.errors import InputError

DEFAULTS = Defaults(
    generation=Generation(max_new_tokens=9, temperature=0.5, top_p=0.8, seed=3),
    wording=PromptOptions(system="Be brief."),
)


def read(tmp_path: Path, text: str, name: str = "prompts.jsonl", defaults: Defaults = DEFAULTS) -> list[Asked]:
    (tmp_path / name).write_bytes(text.encode())
    return read_prompts(tmp_path / name, defaults)


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_every_key_of_a_line(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    found = read(
        tmp_path,
        lines(
            {"id": "a", "prompt": "One", "max_new_tokens": 4, "temperature": 0, "top_p": 1, "seed": 11},
            {"id": 7, "messages": chat, "completion": "Hello."},
            {"id": "c", "prompt": "2+2=", "raw": True, "token_ids": [5, 6]},
            {"id": "d", "prompt": [1, 2], "completion": [3]},
            {"id": "e", "token_ids": [4, 5, 6]},
            {"id": "f", "prompt": "Two", "system": "Be long."},
        ),
    )
    assert [one.id for one in found] == ["a", "7", "c", "d", "e", "f"]
    assert [one.where for one in found] == [f"line {number}" for number in range(1, 7)]
    assert found[0].generation == Generation(max_new_tokens=4, temperature=0, top_p=1, seed=11)
    assert found[1].generation == Generation(max_new_tokens=9, temperature=0.5, top_p=0.8, seed=seed_of(3, "7"))
    assert [one.wording.system for one in found] == ["Be brief.", None, None, None, None, "Be long."]
    assert (found[1].prompt, found[1].completion) == (chat, "Hello.")
    assert (found[2].wording.raw, found[2].token_ids) == (True, (5, 6))
    assert (found[3].prompt, found[3].token_ids) == ((1, 2), (3,))
    assert (found[4].prompt, found[4].token_ids) == ((4,), (5, 6))


def test_text_lines_keep_what_is_in_them(tmp_path: Path) -> None:
    text = '\ufeffWhy is\u2028the sky blue?\r\n\n  {"not": "json"}  \nWhy?\nWhy?\n'
    found = read(tmp_path, text, "prompts.txt")
    assert [one.prompt for one in found] == ["Why is\u2028the sky blue?", '  {"not": "json"}  ', "Why?", "Why?"]
    assert [one.where for one in found] == ["line 1", "line 3", "line 4", "line 5"]
    assert found[3].id == f"{found[2].id}-2"  # a copy is another prompt


def test_an_id_and_its_seed_do_not_depend_on_the_place(tmp_path: Path) -> None:
    there = {one.prompt: one for one in read(tmp_path, "Why?\nWhat?\nWho?\n", "a.txt")}
    back = {one.prompt: one for one in read(tmp_path, "Who?\nWhy?\n", "b.txt")}
    for prompt, one in back.items():
        assert (one.id, one.sha256, one.generation) == (
            there[prompt].id,
            there[prompt].sha256,
            there[prompt].generation,
        )


def test_the_seed_is_what_the_documents_say() -> None:
    expected = int(hashlib.sha256("3:möwe".encode()).hexdigest()[:12], 16)
    assert seed_of(3, "möwe") == expected
    assert 0 <= seed_of(0, "a") < 2**48


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "no valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        ({"prompt": "a", "temprature": 1}, "unknown key 'temprature'"),
        ({"seed": 1}, "no prompt, messages or token_ids"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "both prompt and messages"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": 3}, "prompt is 3, expected a text or token ids"),
        ({"prompt": [1, -2]}, "prompt: expected a token id at index 1, found -2"),
        ({"messages": [{"role": "user"}]}, 'expected a text as "content"'),
        ({"messages": [{"role": "user", "content": "a"}], "raw": True}, "raw was asked for"),
        ({"messages": [{"role": "user", "content": "a"}], "system": "b"}, "system text goes with a text prompt"),
        ({"prompt": "a", "completion": "b", "token_ids": [1]}, "both completion and token_ids"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": "a", "max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected a whole number"),
        ({"prompt": "a", "max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"prompt": "a", "temperature": True}, "temperature is true"),
        ({"prompt": "a", "top_p": 2}, "top_p is 2"),
        ('{"prompt": "a", "temperature": NaN}', "temperature is nan"),
        ({"prompt": "a", "seed": 2**64}, "seed is"),
        ({"prompt": "a", "raw": "yes"}, "expected true or false"),
        ({"prompt": "a", "seam": "both"}, "seam is 'both', expected prompt or whole"),
        ({"prompt": "a", "tools": "weather"}, "tools: expected a JSON list of tools"),
        ({"prompt": [1, 2], "tools": [{"name": "f"}]}, "not with raw text or ids"),
        ({"prompt": "a", "continue": True}, "continue goes on with the last of messages"),
        ({"messages": [{"role": "user", "content": "a"}], "continue": 1}, "continue is 1, expected true or false"),
        ({"prompt": "a", "id": 1.5}, "id is 1.5"),
        ({"prompt": "a", "id": "two\nlines"}, "printable"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_line_that_cannot_be_used_is_that_prompts_failure(tmp_path: Path, record: Any, message: str) -> None:
    text = record if isinstance(record, str) else json.dumps(record)
    found = read(tmp_path, f'{{"id": "good", "prompt": "good"}}\n{text}\n{{"id": "too", "prompt": "b"}}\n')
    assert [one.id for one in found] == ["good", "line-2", "too"]
    assert [one.problem is None for one in found] == [True, False, True]
    assert message in (found[1].problem or "")
    assert found[1].where == "line 2"
    assert found[1].prompt == text or json.loads(str(found[1].prompt), parse_constant=str)


def test_a_failure_keeps_its_own_id_where_it_has_one(tmp_path: Path) -> None:
    bad = {"id": "mine", "prompt": ""}, {"id": "good", "prompt": ""}, {"id": [], "prompt": "x"}, {"id": "line-5"}
    found = read(tmp_path, lines({"id": "good", "prompt": "x"}, *bad))
    assert [one.id for one in found] == ["good", "mine", "line-3", "line-4", "line-5"]
    taken = read(tmp_path, lines({"prompt": ""}, {"id": "line-1", "prompt": "x"}, {"id": "line-1-2", "prompt": "y"}))
    assert [one.id for one in taken] == ["line-1-3", "line-1", "line-1-2"]


def test_a_line_with_nothing_but_spaces_around_json_null(tmp_path: Path) -> None:
    found = read(tmp_path, 'null\n{"prompt": "x", "tools": null, "continue": null, "seam": null}\n')
    assert found[0].problem == "expected a JSON object, found NoneType"
    assert (found[1].problem, found[1].wording) == (None, DEFAULTS.wording)


def test_what_is_set_for_all_holds_where_it_has_a_meaning(tmp_path: Path) -> None:
    tools = ({"name": "f"},)
    defaults = Defaults(wording=PromptOptions(tools=tools, continue_last=True, seam="whole"))
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = {"messages": chat, "tools": [{"name": "g"}], "continue": False, "seam": "prompt"}
    found = read(
        tmp_path,
        lines({"messages": chat}, {"prompt": "a"}, {"prompt": "a", "raw": True}, {"prompt": [1]}, own),
        defaults=defaults,
    )
    assert [one.problem for one in found] == [None] * 5
    assert [one.wording.tools for one in found] == [tools, tools, None, None, ({"name": "g"},)]
    assert [one.wording.continue_last for one in found] == [True, False, False, False, False]
    assert [one.wording.seam for one in found] == ["whole"] * 4 + ["prompt"]
    assert len({one.sha256 for one in found}) == 5


def test_a_file_without_a_prompt_that_can_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        read(tmp_path, lines({"prompt": ""}, {}, {"prompt": 1}, {"prompt": [1, -2]}, {"x": 1}))
    told = str(refusal.value)
    assert all(f"line {number}: " in told for number in (1, 2, 3, 4))
    assert told.endswith("and 1 more")


def test_a_line_of_another_encoding_fails_alone(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", b'{"prompt": "caf\xe9"}\r\n{"prompt": "b"}\r\n'), ("a.txt", b"caf\xe9\r\nb\r\n")):
        (tmp_path / name).write_bytes(text)
        found = read_prompts(tmp_path / name, DEFAULTS)
        assert [one.id for one in found][:1] == ["line-1"]
        assert (found[0].problem or "").endswith("is 0xe9")
        assert (found[1].prompt, found[1].problem) == ("b", None)
    (tmp_path / "wide.txt").write_bytes("\ufeffone\ntwo\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "wide.txt", DEFAULTS)


def test_a_first_line_that_is_cut_short_makes_no_texts_of_the_others(tmp_path: Path) -> None:
    found = read(tmp_path, '{"prompt": "cut\n{"prompt": "whole"}\n', "prompts")
    assert [one.problem is None for one in found] == [False, True]
    assert found[1].prompt == "whole"
    assert [one.prompt for one in read(tmp_path, "{braces\nplain\n", "prompts")] == ["{braces", "plain"]


def test_the_second_of_two_ids_is_a_failure(tmp_path: Path) -> None:
    found = read(tmp_path, lines({"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}, {"id": "b", "prompt": "z"}))
    assert [one.id for one in found] == ["a", "line-2", "b"]
    assert found[1].problem == "the id 'a' was given before (line 1)"


def test_files_without_prompts(tmp_path: Path) -> None:
    for text in ("", "\n \n"):
        with pytest.raises(InputError, match="holds no prompts"):
            read(tmp_path, text)
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "nothing", DEFAULTS)
    with pytest.raises(InputError, match="JSONL"):
        read(tmp_path, '[{"prompt": "a"}]', "prompts.json")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.txt", DEFAULTS)


@given(st.lists(st.text(min_size=1).filter(lambda text: bool(text.strip()) and max(text) < "\ud800"), min_size=1))
def test_any_texts_survive_as_json(texts: list[str]) -> None:
    found = ask(((f"line {n}", {"prompt": text}) for n, text in enumerate(texts)), Defaults(), "prompts")
    assert [one.prompt for one in found] == texts
    assert len({one.id for one in found}) == len(texts)


def test_processes_of_one_launch() -> None:
    alone = read_launch({})
    assert (alone.world, alone.shared) == (1, False)
    assert read_launch({}).run != alone.run
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    one, other = read_launch(torchrun), read_launch({**torchrun, "RANK": "0", "LOCAL_RANK": "0"})
    assert (one.rank, one.world, one.local_rank, one.run) == (1, 2, 1, other.run)
    assert read_launch({**torchrun, "MASTER_PORT": "2"}).run != one.run
    with pytest.raises(InputError, match="RANK is 2"):
        read_launch({**torchrun, "RANK": "2"})
    with pytest.raises(InputError, match="WORLD_SIZE is 'two'"):
        read_launch({**torchrun, "WORLD_SIZE": "two"})
