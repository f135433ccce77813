"""From what the user says to the ids the model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from attnlens.capture.messages import check_messages, check_tools, require_unicode, require_unicode_messages
from attnlens.capture.template import fill_template
from attnlens.schemas.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """A prompt as text with its template filled in, as ids, and as the messages it was made of (None: raw text).

    `tools` went to the template; `continued`: the last message is continued, not answered. `fed`: it was given as ids.
    `n_added`: so many ids at the beginning are the tokenizer's own and not in the text. `notes`: remarks for the store.
    """

    text: str
    ids: list[int]
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    continued: bool = False
    fed: bool = False
    n_added: int = 0
    notes: tuple[str, ...] = ()


def build_prompt(
    tokenizer: Any,
    *,
    text: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    system: str | None = None,
    raw: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_last: bool = False,
) -> Prompt:
    """The ids of `text` or `messages`, of which one is given.

    With a chat template, `text` becomes a user message after the message `system`, and the header of the answer
    follows, or, with `continue_last`, the last message is left open. Without one (base models) or with `raw`, `text`
    is the prompt as it stands, after the tokens with which the tokenizer begins every text.

    Raises:
        InputError: nothing to say, both or neither given, text that is no Unicode, messages the template refuses or
            whose words it leaves out, or what needs a template (messages, a system text, tools) where there is none.
    """
    if (text is None) == (messages is None):
        raise InputError("give either a prompt or messages" + (", not both" if text is not None else ""))
    if continue_last:
        _require_assistant(messages)
    if not getattr(tokenizer, "chat_template", None) or raw:
        _refuse_chat("raw text" if raw else "a model without a chat template", messages, system, tools)
        return _raw(tokenizer, text or "")
    chat: list[dict[str, Any]]
    if messages is None:
        if not (text or "").strip():
            raise InputError("the prompt is empty")
        chat = [{"role": "user", "content": text}]
        if system is not None:
            chat.insert(0, {"role": "system", "content": system})
    else:
        if system is not None:
            raise InputError("a system text cannot be given with messages: make it their first message")
        chat = check_messages(messages, "messages")
    require_unicode_messages(chat)
    described = list(check_tools(tools, "tools")) if tools is not None else None
    filled = fill_template(tokenizer, chat, described, continue_last=continue_last)
    # The template wrote every special token, the first included.
    ids = _require_ids(encode(tokenizer, filled.text))
    return Prompt(filled.text, ids, chat, described, continue_last, notes=filled.notes)


def _require_assistant(messages: Sequence[Mapping[str, Any]] | None) -> None:
    """The last message can be continued."""
    if messages is None:
        raise InputError("the last message is to be continued, but the prompt is a text: give messages")
    last = messages[-1] if messages else {}
    role = last.get("role") if isinstance(last, Mapping) else None
    if role != "assistant":
        raise InputError(f"the last message is to be continued, but it is the {role}'s: expected the assistant's")
    if not last.get("content"):
        raise InputError("the last message is to be continued, but it has no text")


def _refuse_chat(why: str, messages: object, system: object, tools: object) -> None:
    """What needs a chat template, where there is none."""
    if messages is not None:
        raise InputError(f"messages cannot be given with {why}: give the prompt as text")
    if system is not None:
        raise InputError(f"a system text cannot be given with {why}: write it into the prompt")
    if tools is not None:
        raise InputError(f"tools cannot be given with {why}: write them into the prompt")


def _raw(tokenizer: Any, text: str) -> Prompt:
    if not text:
        raise InputError("the prompt is empty")
    require_unicode(text, "the prompt")
    ids, n_added = _begun(tokenizer, text)
    return Prompt(text, _require_ids(ids), n_added=n_added)


def _begun(tokenizer: Any, text: str) -> tuple[list[int], int]:
    """Ids of a text that begins as the tokenizer begins every text, and how many of them it put before."""
    plain = encode(tokenizer, text)
    begin = getattr(tokenizer, "bos_token", None)
    if begin and text.startswith(begin):
        return plain, 0
    full = list(tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"])
    # What a tokenizer puts before a text belongs to it; what it puts behind (end of sequence) would end the prompt.
    starts = [n for n in range(len(full) - len(plain) + 1) if full[n : n + len(plain)] == plain]
    return (full[: starts[0] + len(plain)], starts[0]) if starts else (full, 0)


def _require_ids(ids: list[int]) -> list[int]:
    if not ids:
        raise InputError("the prompt has no tokens: the tokenizer drops all of its characters")
    return ids


def fed_prompt(tokenizer: Any, ids: Sequence[int]) -> Prompt:
    """A prompt of ids that stay as they are."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return Prompt(text.encode("utf-8", "replace").decode("utf-8"), list(ids), fed=True)


def encode_whole(tokenizer: Any, prompt: Prompt, completion: str) -> list[int]:
    """Ids of a prompt's text and what follows it as one text, begun as the prompt is."""
    text = prompt.text + completion
    return encode(tokenizer, text) if prompt.fed or prompt.messages is not None else _begun(tokenizer, text)[0]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of the text alone, without tokens the tokenizer would add around it."""
    return list(tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])


def ids_of(value: Any, what: str) -> list[int]:
    """Token ids out of a list, an array or a tensor.

    Raises:
        InputError: it is none of these, or something in it is no id.
    """
    items = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(items, Sequence) or isinstance(items, str | bytes | bytearray):
        raise InputError(f"{what}: expected a list of ids, found {type(value).__name__}")
    item: Any
    for index, item in enumerate(items):
        # 1.5 is no id, and True is none, though Python makes one of either.
        if isinstance(item, bool) or not isinstance(item, Integral) or not 0 <= int(item) < 2**31:
            raise InputError(f"{what}: expected a token id at index {index}, found {str(item)[:40]}")
    return [int(item) for item in items]


def check_tokenizer_kind(tokenizer: Any) -> None:
    """That it turns texts into ids and back.

    Raises:
        InputError: it is something else; a processor's own tokenizer is pointed out.
    """
    within = hasattr(tokenizer, "image_processor") or hasattr(tokenizer, "feature_extractor")
    if within or not callable(tokenizer) or not callable(getattr(tokenizer, "get_vocab", None)):
        hint = "; give its `tokenizer`" if hasattr(tokenizer, "tokenizer") else ""
        raise InputError(
            f"the tokenizer is of class {type(tokenizer).__name__}, expected a tokenizer of transformers{hint}"
        )


def check_ids(ids: Sequence[int], size: int, what: str = "token ids") -> None:
    """Return if every id is one of the vocabulary's.

    Args:
        ids: one id a token.
        size: rows of the model's embedding.
        what: how the message calls them.

    Raises:
        InputError: says which, and where it stands.
    """
    for index, token in enumerate(ids):
        if not 0 <= token < size:
            raise InputError(f"{what}: id {token} at index {index} is outside the model's vocabulary, 0 … {size - 1}")
