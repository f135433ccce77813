"""Prompts: chat templates, raw text, and the files they are read from."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.capture.losses import losses
from attnlens.capture.prompt import build_prompt, check_ids
from attnlens.capture.prompt_files import TokenIds, read_conversation, read_prompt_file, read_token_ids
from attnlens.schemas.errors import InputError
from tiny import TEMPLATE, byte_fallback_tokenizer, byte_level_tokenizer, wordpiece_tokenizer, wrap

BASE = byte_level_tokenizer()
CHAT = byte_level_tokenizer(TEMPLATE)
BEGIN, END = 1, 2


def plain(text: str) -> list[int]:
    return list(BASE(text, add_special_tokens=False)["input_ids"])


def test_a_text_becomes_a_user_message() -> None:
    prompt = build_prompt(CHAT, text="Who?", system="Be brief.")
    assert prompt.text == "<begin>[system]Be brief.<end>[user]Who?<end>[assistant]"
    assert prompt.ids == [BEGIN, *plain("[system]Be brief."), END, *plain("[user]Who?"), END, *plain("[assistant]")]
    assert prompt.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]


def test_messages_keep_their_order_and_are_copied() -> None:
    given_ = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    prompt = build_prompt(CHAT, messages=given_)
    assert prompt.text == "<begin>[user]a<end>[assistant]b<end>[user]c<end>[assistant]"
    assert prompt.messages == given_
    assert prompt.messages is not None
    assert prompt.messages[0] is not given_[0]


@pytest.mark.parametrize(("tokenizer", "raw"), [(BASE, False), (BASE, True), (CHAT, True)])
def test_raw_text_begins_as_the_tokenizer_begins(tokenizer: Any, raw: bool) -> None:
    prompt = build_prompt(tokenizer, text="Who is it? ", raw=raw)
    assert (prompt.text, prompt.ids, prompt.messages) == ("Who is it? ", [BEGIN, *plain("Who is it? ")], None)


def test_the_begin_token_is_not_doubled() -> None:
    assert build_prompt(BASE, text="<begin>Who?").ids == [BEGIN, *plain("Who?")]


def test_an_end_token_that_the_tokenizer_adds_is_left_out() -> None:
    from tokenizers import processors

    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", BEGIN), ("<end>", END)]
    )
    assert tokenizer("Who?")["input_ids"][-1] == END
    assert build_prompt(tokenizer, text="Who?").ids == [BEGIN, *plain("Who?")]


MESSAGE = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("tokenizer", "options", "said"),
    [
        (CHAT, {}, "give either a prompt or messages"),
        (CHAT, {"text": "x", "messages": MESSAGE}, "not both"),
        (CHAT, {"text": ""}, "empty"),
        (CHAT, {"text": " \n"}, "empty"),
        (BASE, {"text": ""}, "empty"),
        (CHAT, {"messages": MESSAGE, "system": "s"}, "make it their first message"),
        (BASE, {"messages": MESSAGE}, "a model without a chat template"),
        (BASE, {"text": "x", "system": "s"}, "a model without a chat template"),
        (CHAT, {"text": "x", "system": "s", "raw": True}, "raw text"),
        (CHAT, {"messages": MESSAGE, "raw": True}, "raw text"),
        (CHAT, {"messages": []}, "at least one message"),
        (CHAT, {"messages": [{"role": "user"}]}, 'message 0: expected a text as "content", found nothing'),
        (CHAT, {"messages": [*MESSAGE, {"role": 3, "content": ""}]}, 'message 1: expected a text as "role", found int'),
        (CHAT, {"messages": [{"role": "user", "content": " "}]}, "every message is empty"),
        (CHAT, {"text": "a\ud800b"}, "character 1 is U+D800"),
        (CHAT, {"text": "ab", "system": "\udfff"}, "the system message is no valid Unicode"),
        (BASE, {"text": "a\ud83d"}, "half of a surrogate pair"),
    ],
)
def test_refusals(tokenizer: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        build_prompt(tokenizer, **options)
    assert said in str(caught.value)


def test_what_the_template_refuses_is_said() -> None:
    strict = byte_level_tokenizer("{{ raise_exception('System role not supported') }}")
    with pytest.raises(InputError, match="refuses these messages: System role not supported"):
        build_prompt(strict, text="x", system="y")


@given(text=st.text(min_size=1))
@settings(max_examples=100, deadline=None)
def test_raw_ids_decode_to_the_text(text: str) -> None:
    ids = build_prompt(CHAT, text=text, raw=True).ids
    assert CHAT.decode(ids[1:], clean_up_tokenization_spaces=False) == text


# Files


def write(tmp: Path, content: str | bytes) -> Path:
    path = tmp / "file"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Who?", "Who?"),
        ("Who?\n", "Who?"),
        ("Who?\r\n", "Who?"),
        ("a\n\n", "a\n"),
        ("\ufeff é", " é"),
        ("a\r\nb", "a\r\nb"),
    ],
)
def test_prompt_files(tmp_path: Path, content: str, expected: str) -> None:
    assert read_prompt_file(write(tmp_path, content)) == expected


def test_unreadable_files(tmp_path: Path) -> None:
    for read in (read_prompt_file, read_conversation, read_token_ids):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "none")
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path)
        with pytest.raises(InputError, match="not UTF-8: byte 2 is 0xff"):
            read(write(tmp_path, b"ab\xff"))
    with pytest.raises(InputError, match="is empty"):
        read_prompt_file(write(tmp_path, "\n"))


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}), min_size=1
).filter(lambda messages: any(message["content"].strip() for message in messages))


@given(messages=MESSAGES, wrapped=st.booleans(), indent=st.sampled_from([None, 2]))
@settings(max_examples=60, deadline=None)
def test_message_files_round_trip(
    tmp_path_factory: pytest.TempPathFactory, messages: list[dict[str, str]], wrapped: bool, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("messages") / "m.json"
    path.write_text(json.dumps({"messages": messages} if wrapped else messages, indent=indent))
    assert read_conversation(path).messages == messages


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"role": "user",\n "content": }]', "line 2, column 13: no valid JSON"),
        ("", "line 1, column 1"),
        ("{}", 'without "messages"'),
        ('"text"', "expected a list of at least one message"),
        ("[3]", "message 0 is int, expected an object"),
        ('[{"role": "user", "content": null}]', "found NoneType"),
        ("[" * 100000, "no valid JSON"),
    ],
)
def test_bad_message_files(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_conversation(write(tmp_path, content))
    assert said in str(caught.value)


IDS = st.lists(st.integers(0, 2**31 - 1).filter(lambda i: i < 10**9), min_size=1)


@given(ids=IDS, separator=st.sampled_from([" ", "\n", ",", ", ", " ,\t", "\r\n"]))
@settings(max_examples=60, deadline=None)
def test_ids_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: list[int], separator: str) -> None:
    folder = tmp_path_factory.mktemp("ids")
    assert read_token_ids(write(folder, separator.join(map(str, ids)) + "\n")) == TokenIds(ids)
    assert read_token_ids(write(folder, json.dumps(ids, indent=1))) == TokenIds(ids)
    both = {"prompt": ids, "completion": ids[::-1]}
    assert read_token_ids(write(folder, json.dumps(both))) == TokenIds(ids[::-1], ids)
    assert read_token_ids(write(folder, json.dumps({"prompt": ids}))) == TokenIds([], ids)
    assert read_token_ids(write(folder, json.dumps({"completion": ids}))) == TokenIds(ids)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (" \n", "is empty"),
        (",,", "holds no token ids"),
        ("1 2\n3 x4", "line 2, column 3: expected a token id, found 'x4'"),
        ("1 -2", "column 3: expected a token id, found '-2'"),
        ("1.5", "found '1.5'"),
        ("99999999999", "found '99999999999'"),
        ("[]", "holds no token ids"),
        ("[1, true]", "index 1: expected a token id, found true"),
        ("[1, -1]", "index 1: expected a token id, found -1"),
        ("[1, [2]]", "index 1"),
        ("[1,", "line 1, column 4: no valid JSON"),
        ("{}", 'expected "prompt" and "completion"'),
        ('{"prompt": [1], "ids": [2]}', "unknown key 'ids'"),
        ('{"prompt": "a"}', "prompt: expected a list of token ids, found str"),
        ('{"completion": []}', "completion: holds no token ids"),
        ('{"prompt": [], "completion": [1]}', "prompt: holds no token ids"),
    ],
)
def test_bad_id_files(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_token_ids(write(tmp_path, content))
    assert said in str(caught.value)


@given(junk=st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_is_ids_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, junk: str) -> None:
    path = write(tmp_path_factory.mktemp("junk"), junk)
    with contextlib.suppress(InputError):
        found = read_token_ids(path)
        assert found.completion or found.prompt


def test_ids_outside_the_vocabulary() -> None:
    check_ids([0, 9], 10)
    for ids in ([3, 10], [3, -1]):
        with pytest.raises(InputError, match=rf"completion: id {ids[1]} at index 1 is outside .*, 0 … 9"):
            check_ids(ids, 10, "completion")


def test_what_a_tokenizer_does_not_know_is_told() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = wordpiece_tokenizer()
    ids = [*words("the 🦜")["input_ids"]]
    assert losses(words, "the 🦜", ids) == (
        f"1 of {len(ids)} given tokens are <unk>: the tokenizer does not know what stood there",
    )
    silent = Tokenizer(models.BPE({"<begin>": 0, "a": 1, "b": 2}, []))
    silent.pre_tokenizer = pre_tokenizers.Whitespace()
    assert silent.encode("aéb é🦜").ids == [1, 2]
    assert losses(wrap(silent), "aéb é🦜", [0, 1, 2]) == (
        "the tokenizer has no token for 2 of the characters that were given: é, 🦜",
    )


@given(text=st.text())
@settings(max_examples=60, deadline=None)
def test_what_every_tokenizer_does_is_no_loss(text: str) -> None:
    assert losses(BASE, text, plain(text)) == ()
    assert losses(FALLBACK, text, FALLBACK(text)["input_ids"]) == ()


FALLBACK = byte_fallback_tokenizer()


def test_lower_case_and_spaces_are_no_loss() -> None:
    tokenizer = wordpiece_tokenizer()
    assert losses(tokenizer, "The\tDOG  ", tokenizer("The\tDOG  ")["input_ids"]) == ()
