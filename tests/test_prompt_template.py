"""Chat templates: the words of messages are in what is fed, or the messages are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.capture import capture
from attnlens.capture.plan import plan_capture, read_prompt
from attnlens.capture.prompt import build_prompt
from attnlens.capture.prompt_files import read_conversation
from attnlens.capture.prompt_options import PromptOptions
from attnlens.schemas.errors import InputError
from attnlens.store.tools.crop import crop
from attnlens.store.tools.inif import export_inif
from attnlens.store.tools.keep import Keep
from attnlens.store.verify import verify
from tiny import TEMPLATE, byte_level_tokenizer, llama

HEAD = "{% if add_generation_prompt %}[assistant]{% endif %}"
PARTS = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
FIRST_PART = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}" + HEAD
TEXT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] + '<end>' }}{% endfor %}" + HEAD
MIXED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'system' %}{{ m.content | trim + '!' }}{% else %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}" + HEAD
)
TRIMMED = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<end>{% endfor %}" + HEAD
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}" + HEAD
LAST = "[user]{{ messages[-1].content }}" + HEAD
FIXED = "USER: A ASSISTANT:"
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] | trim }}"
    "{% else %}{{ m.content }}{% endif %}<end>{% endfor %}" + HEAD
)
QUOTED = "{% for m in messages %}{{ m | tojson }}{% endfor %}" + HEAD
TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}<end>{% endfor %}" + HEAD
)
JOINED_CALLS = TOOLS.replace("call.function.arguments | tojson", "'' + call.function.arguments")
ESCAPED = TRIMMED.replace("| trim", "| e")
PARTS_OR_NONE = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content or [] %}{{ part.text }}{% endfor %}<end>{% endfor %}"
    + HEAD
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": "1", "content": "rain"}
    return [user("Rain?"), {"role": "assistant", "content": None, "tool_calls": [call]}, answer]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (PARTS, [user("Who?")], "USER: Who? ASSISTANT:"),
        (PARTS, [user(parts("Who", " is it?"))], "USER: Who is it? ASSISTANT:"),
        (FIRST_PART, [user("Who?")], "[user]Who?[assistant]"),
        (TEXT, [user(parts("Who", " is it?"))], "[user]Who is it?<end>[assistant]"),
        (TEMPLATE, [user(parts("Who?"))], "<begin>[user]Who?<end>[assistant]"),
        (MIXED, [{"role": "system", "content": "Be"}, user("Who?")], "[system]Be![user]Who?[assistant]"),
        (TRIMMED, [user("  Who?\n")], "[user]Who?<end>[assistant]"),
        (ESCAPED, [user(parts("Who", " is it?"))], "[user]Who is it?<end>[assistant]"),
        (ESCAPED, [user("\"a\" < 'b'")], "[user]&#34;a&#34; &lt; &#39;b&#39;<end>[assistant]"),
        (TEMPLATE, [user("{'type': 'text'}")], "<begin>[user]{'type': 'text'}<end>[assistant]"),
        (
            QUOTED,
            [user('say "é"\n<b>')],
            '{"role": "user", "content": "say \\"é\\"\\n<b>"}[assistant]',
        ),
    ],
)
def test_the_words_reach_the_text(template: str, messages: list[dict[str, Any]], expected: str) -> None:
    prompt = build_prompt(byte_level_tokenizer(template), messages=messages)
    assert prompt.text == expected
    assert prompt.messages == messages
    assert prompt.notes == ()


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (FIXED, [user("Who?")], r"words of message 0 \(user\)"),
        (FIXED, [user("A")], r"words of message 0 \(user\)"),
        (NO_SYSTEM, [{"role": "system", "content": "s"}, user("Who?")], r"words of message 0 \(system\)"),
        (LAST, [user("Who?"), assistant("Alice."), user("Who?")], r"words of message 0 \(user\)"),
        (FIRST_PART, [user(parts("Who", " is it?"))], r"words of message 0 \(user\)"),
        (TEXT.replace("m['content']", "m['content'][:3]"), [user("Who?")], r"words of message 0 \(user\)"),
        (PARTS_OR_NONE, called({"city": "Rome"}), r"the call of 'weather' in message 1 \(assistant\)"),
        (TRIMMED, called({"city": "Rome"}), r"the call of 'weather' in message 1 \(assistant\)"),
        (
            TOOLS.replace("{{ call.function.arguments | tojson }}", ""),
            called({"city": "Rome"}),
            r"arguments of 'weather' in message 1",
        ),
    ],
)
def test_a_template_that_drops_them_is_refused(template: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InputError, match=f"the model's chat template leaves out {said}"):
        build_prompt(byte_level_tokenizer(template), messages=messages)


@pytest.mark.parametrize("change", ["upper", "lower", "replace('W', 'V')"])
def test_a_template_that_changes_words_is_refused_for_that(change: str) -> None:
    tokenizer = byte_level_tokenizer(TEXT.replace("m['content']", f"m['content'] | {change}"))
    with pytest.raises(InputError, match=r"leaves out or changes words of message 0 \(user\)"):
        build_prompt(tokenizer, text="Who?")


@pytest.mark.parametrize("program", ["{{ 1 // 0 }}", "{% macro x() %}{{ x() }}{% endmacro %}{{ x() }}"])
def test_any_error_of_a_template_is_its_refusal(program: str) -> None:
    with pytest.raises(InputError, match=r"the model's chat template refuses these messages: .*(zero|recursion)"):
        build_prompt(byte_level_tokenizer(program + TEXT), text="Who?")


@given(words=st.text(min_size=1).filter(str.strip))
@settings(max_examples=40, deadline=None)
def test_any_words_are_found_or_missed(words: str) -> None:
    assert build_prompt(TEXT_ONLY, text=words).text == f"[user]{words}<end>[assistant]"
    assert build_prompt(PARTS_ONLY, text=words).text == f"USER: {words} ASSISTANT:"
    with pytest.raises(InputError, match="leaves out words of message 0"):
        build_prompt(NOTHING, text=words)


TEXT_ONLY, PARTS_ONLY, NOTHING = map(byte_level_tokenizer, (TEXT, PARTS, FIXED))


def test_reasoning_that_a_template_cuts_is_told() -> None:
    talk = [user("Who?"), assistant("<think>hm</think>Alice."), user("Why?")]
    prompt = build_prompt(byte_level_tokenizer(THINKING), messages=talk)
    assert prompt.text == "[user]Who?<end>[assistant]Alice.<end>[user]Why?<end>[assistant]"
    assert prompt.notes == ("the chat template leaves out words of message 1 (assistant)",)
    assert plan_capture(llama(), byte_level_tokenizer(), prompt, None, None, 1, PromptOptions()).notes == prompt.notes


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_reasoning_of_its_own_that_a_template_does_not_read_is_told(key: str) -> None:
    talk = [user("Who?"), assistant("Alice.", **{key: "hm"}), user("Why?")]
    dropped = build_prompt(byte_level_tokenizer(TEXT), messages=talk)
    assert dropped.notes == (f"the chat template leaves out {key} of message 1 (assistant)",)
    read = TEXT.replace("m['content']", f"m.{key} | default('') + m['content']")
    assert build_prompt(byte_level_tokenizer(read), messages=talk).notes == ()


@pytest.mark.parametrize("arguments", [{"city": 'Köln "x"'}, '{"city": "Köln \\"x\\""}'])
@pytest.mark.parametrize("template", [TOOLS, JOINED_CALLS])
def test_tools_and_their_calls(template: str, arguments: Any) -> None:
    prompt = build_prompt(byte_level_tokenizer(template), messages=called(arguments), tools=[WEATHER])
    assert prompt.text == (
        json.dumps(WEATHER) + '[user]Rain?<end>[assistant]<call>weather {"city": "Köln \\"x\\""}<end>'
        "[tool]rain<end>[assistant]"
    )
    assert (prompt.messages, prompt.tools) == (called(arguments), [WEATHER])


def test_a_dropped_call_is_missed_though_the_tools_name_it() -> None:
    template = TOOLS.replace("<call>{{ call.function.name }} {{ call.function.arguments | tojson }}", "")
    with pytest.raises(InputError, match="leaves out the call of 'weather' in message 1"):
        build_prompt(byte_level_tokenizer(template), messages=called({}), tools=[WEATHER])


def test_tools_that_a_template_does_not_name_are_refused() -> None:
    with pytest.raises(InputError, match="leaves out the tool 'weather'"):
        build_prompt(byte_level_tokenizer(TEMPLATE), text="the weather?", tools=[WEATHER])
    with pytest.raises(InputError, match="tools cannot be given with a model without a chat template"):
        build_prompt(byte_level_tokenizer(), text="Rain?", tools=[WEATHER])


@pytest.mark.parametrize("content", ["The answer is", parts("The answer", " is")])
@pytest.mark.parametrize("template", [TEXT, PARTS])
def test_a_last_message_is_continued_as_transformers_does(template: str, content: Any) -> None:
    tokenizer = byte_level_tokenizer(template)
    joined = content if isinstance(content, str) else "".join(part["text"] for part in content)
    form = joined if template == TEXT else parts(joined)
    question = user("Who?") if template == TEXT else user(parts("Who?"))
    expected = tokenizer.apply_chat_template(
        [question, assistant(form)], tokenize=False, add_generation_prompt=False, continue_final_message=True
    )
    prompt = build_prompt(tokenizer, messages=[user("Who?"), assistant(content)], continue_last=True)
    assert prompt.text == expected
    assert prompt.text.endswith("The answer is")
    assert prompt.continued


def test_what_cannot_be_continued_is_refused() -> None:
    tokenizer = byte_level_tokenizer(TEMPLATE)
    with pytest.raises(InputError, match="it is the user's: expected the assistant's"):
        build_prompt(tokenizer, messages=[user("Who?")], continue_last=True)
    with pytest.raises(InputError, match="the prompt is a text"):
        build_prompt(tokenizer, text="Who?", continue_last=True)
    with pytest.raises(InputError, match="it has no text"):
        build_prompt(tokenizer, messages=[*called({})[:2]], continue_last=True)
    talk = [user("Who?"), assistant("<think>hm</think>Al")]
    with pytest.raises(InputError, match="changes the words of the message that is to be continued"):
        build_prompt(byte_level_tokenizer(THINKING), messages=talk, continue_last=True)
    twice = byte_level_tokenizer(TEXT.replace("m['content']", "m['content'] + m['content']"))
    with pytest.raises(InputError, match="prints the words of message 1, which is to be continued, more than once"):
        build_prompt(twice, messages=[user("Who?"), assistant("Al")], continue_last=True)
    timed = byte_level_tokenizer("{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + TEXT)
    assert build_prompt(timed, messages=[user("Who?"), assistant("Al")], continue_last=True).text.endswith("]Al")
    with pytest.raises(InputError, match="cannot leave a last message open"):
        build_prompt(byte_level_tokenizer(QUOTED), messages=[assistant("A\nB")], continue_last=True)
    quoted = byte_level_tokenizer("{% for m in messages %}{{ m.content | tojson }}{% endfor %}")
    quoted = build_prompt(quoted, messages=[assistant("\nAl")], continue_last=True)
    assert quoted.text == '"\\nAl'
    assert quoted.notes == ()
    trimmed = build_prompt(byte_level_tokenizer(TRIMMED), messages=[user("Who?"), assistant("Al ")], continue_last=True)
    assert trimmed.text == "[user]Who?<end>[assistant]Al"
    assert "white space" in trimmed.notes[0]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (user([{"type": "image", "url": "x"}, *parts("what?")]), "a part of type 'image': only text can be captured"),
        (user([{"type": "input_audio"}]), "a part of type 'input_audio'"),
        (user(["what?"]), 'expected parts {"type": "text", "text": …}, found "what?"'),
        (user([{"type": "text"}]), 'expected a text as "text" of a part, found nothing'),
        (user([]), 'expected a text as "content", found an empty list'),
        (assistant(None), 'expected a text as "content", found NoneType'),
        (assistant(None, tool_calls=[{"name": 3}]), 'expected "tool_calls" as a list'),
        (user([*parts("a", "b\ud800")]), "the user message is no valid Unicode"),
        ({**user("x"), "extra": {1, 2}}, "cannot be recorded as JSON"),
    ],
)
def test_messages_that_cannot_be_fed(message: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        build_prompt(byte_level_tokenizer(TEMPLATE), messages=[message])
    assert said in str(refusal.value)


def test_files_of_messages_may_hold_tools(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"messages": called({}), "tools": [WEATHER]}))
    found = read_conversation(path)
    assert (found.messages, found.tools) == (called({}), (WEATHER,))
    path.write_text(json.dumps({"messages": called({}), "tools": ["weather"]}))
    with pytest.raises(InputError, match="expected a JSON list of tools"):
        read_conversation(path)


@pytest.mark.parametrize(
    "field", ["image_token_id", "video_token_id", "audio_token_index", "image_token_index", "image_patch_id"]
)
def test_a_placeholder_without_its_image_is_refused(field: str) -> None:
    model, tokenizer, options = llama(), byte_level_tokenizer(), PromptOptions()
    marked = tokenizer("x", add_special_tokens=False)["input_ids"][0]
    setattr(model.config, field, marked)
    for given_ in ("axb", [1, marked, 2]):
        with pytest.raises(InputError, match=rf"has id {marked}, which stands for .* \({field}\)"):
            plan_capture(model, tokenizer, read_prompt(tokenizer, given_, options), None, None, 1, options)
    with pytest.raises(InputError, match="token 2 has id"):
        plan_capture(model, tokenizer, read_prompt(tokenizer, [1, 2], options), "x", None, 1, options)
    plan_capture(model, tokenizer, read_prompt(tokenizer, "ab", options), None, None, 1, options)


def test_a_placeholder_that_only_the_tokenizer_knows_is_refused() -> None:
    tokenizer, options = byte_level_tokenizer(), PromptOptions()
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<picture>"]})
    number = tokenizer.convert_tokens_to_ids("<picture>")
    prompt = read_prompt(tokenizer, "a <picture>", options)
    plan_capture(llama(), tokenizer, prompt, None, None, 1, options)
    tokenizer.image_token_id = number
    with pytest.raises(InputError, match=rf"has id {number}, which stands for image input"):
        plan_capture(llama(), tokenizer, prompt, None, None, 1, options)


def test_a_qwen2_vl_placeholder_is_refused() -> None:
    from transformers import Qwen2VLConfig

    model, options = llama(), PromptOptions()
    model.config = Qwen2VLConfig(text_config={"vocab_size": 384}, image_token_id=350, vision_start_token_id=351)
    prompt = read_prompt(byte_level_tokenizer(), [5, 351, 6], options)
    plan_capture(model, byte_level_tokenizer(), prompt, None, None, 1, options)
    with pytest.raises(InputError, match=r"token 1 has id 350, which stands for image input"):
        plan_capture(
            model,
            byte_level_tokenizer(),
            read_prompt(byte_level_tokenizer(), [5, 350], options),
            None,
            None,
            1,
            options,
        )


def test_a_store_records_messages_as_they_were_given(tmp_path: Path) -> None:
    talk = [user(parts("Rain in ", "Rome?")), *called('{"city": "Rome"}')[1:], assistant("It rains in")]
    store = tmp_path / "run.zarr"
    tokenizer = byte_level_tokenizer(TOOLS.replace("m.content }}", "m.content or '' }}"))
    capture(
        llama(max_position_embeddings=256),
        tokenizer,
        talk,
        store,
        tools=[WEATHER],
        continue_last=True,
        max_new_tokens=1,
    )
    about = attnlens.open(store)[0].metadata
    assert (about.messages, about.tools, about.continued) == (talk, [WEATHER], True)
    assert about.prompt.endswith("[assistant]It rains in")
    assert not verify(store).problems
    export_inif(store, tmp_path / "run.inif.json")
    told = json.loads((tmp_path / "run.inif.json").read_text())["samples"][0]["texts"]
    assert told[0] == "Rain in Rome?"
    assert "weather" in told[1]
    crop(store, tmp_path / "crop.zarr", redact=["text:Rome", "text:in Ro"])  # the second lies across two parts
    left = attnlens.open(tmp_path / "crop.zarr")[0].metadata.model_dump_json()
    assert "Rome" not in left
    assert "Rain in" not in left
    crop(store, tmp_path / "short.zarr", keep=Keep(tokens="5:20"))
    short = attnlens.open(tmp_path / "short.zarr")[0].metadata
    assert (short.messages, short.tools) == (None, None)
