"""A given completion: the text that was given is the text that is fed, whatever the tokenizer puts before words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CTRLTokenizer, LlamaTokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

import attnlens
from attnlens.capture import capture
from attnlens.capture.models.meta_tokenizer import sentencepiece_tokenizer, tiktoken_tokenizer
from attnlens.capture.plan import plan_capture, read_prompt
from attnlens.capture.prompt import Prompt, build_prompt
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.seam import join
from attnlens.schemas.errors import InputError
from tiny import (
    CORPUS,
    TEMPLATE,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    llama,
    wordpiece_tokenizer,
    wrap,
    write_tiktoken,
)

WORDS = ["hello", "hello hello world", "Alice and Bob"] * 40


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model like Llama 2's."""
    prefix = tmp_path_factory.mktemp("pieces") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 10 + WORDS),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def llama_tokenizer(model_file: Path, *, legacy: bool) -> Any:
    """transformers' own class, with the merges of `sentencepiece_tokenizer`, which was held against sentencepiece."""
    backend = json.loads(sentencepiece_tokenizer(model_file).backend_tokenizer.to_str())["model"]
    return LlamaTokenizer(vocab=backend["vocab"], merges=[tuple(m) for m in backend["merges"]], legacy=legacy)


def converted_tokenizer(model_file: Path, **says: Any) -> Any:
    """What transformers makes of a folder with nothing but a *.model file and what its configuration says."""
    folder = model_file.with_name("-".join(["folder", *map(str, says.values())]))
    folder.mkdir(exist_ok=True)
    shutil.copy(model_file, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **says}))
    return AutoTokenizer.from_pretrained(folder)


def spaced_tokenizer(folder: Path) -> Any:
    """transformers' CTRL, in Python: pieces that do not end a word are marked, and decoding puts spaces between."""
    pieces = [*(f"{letter}@@" for letter in "helowrd"), *"helowrd", "hello", "<unk>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    merges = ["h e", "l l", "he ll", "hell o</w>"]
    (folder / "merges.txt").write_text("\n".join(["#version", *merges, ""]))
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def prefix_space_tokenizer() -> Any:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


KINDS: dict[str, Callable[[Path], Any]] = {
    "byte level": lambda file: byte_level_tokenizer(),
    "byte level with a space before": lambda file: prefix_space_tokenizer(),
    "metaspace": lambda file: byte_fallback_tokenizer(),
    "prepend": sentencepiece_tokenizer,
    "llama": lambda file: llama_tokenizer(file, legacy=False),
    "llama legacy": lambda file: llama_tokenizer(file, legacy=True),
    "llama file": lambda file: converted_tokenizer(file, legacy=False),
    "llama file legacy": lambda file: converted_tokenizer(file, legacy=True),
    "sentencepiece": lambda file: SentencePieceBackend(
        vocab_file=str(file), bos_token="<s>", eos_token="</s>", unk_token="<unk>", legacy=True
    ),
    "tiktoken": lambda file: (write_tiktoken(file.with_name("ranks")), tiktoken_tokenizer(file.with_name("ranks")))[1],
}


@pytest.fixture(scope="module")
def tokenizer_of(model_file: Path) -> Callable[[str], Any]:
    made: dict[str, Any] = {}
    return lambda kind: made[kind] if kind in made else made.setdefault(kind, KINDS[kind](model_file))


def fed(tokenizer: Any, prompt: str, completion: str, seam: str = "prompt") -> tuple[list[str], list[str], str]:
    """Pieces of the prompt and of the completion, and how they were joined."""
    joined = join(tokenizer, build_prompt(tokenizer, text=prompt, raw=True), completion, seam)
    pieces = tokenizer.convert_ids_to_tokens
    ids = joined.prompt.ids[joined.prompt.n_added :]
    return pieces(ids), pieces(list(joined.given)), joined.seam


@pytest.mark.parametrize(
    "kind", ["llama", "llama legacy", "llama file", "llama file legacy", "prepend", "sentencepiece"]
)
@pytest.mark.parametrize(("prompt", "completion"), [("hello", "hello"), ("hello", " hello"), ("2 + 2 =", "5")])
def test_no_word_begins_at_the_seam(
    tokenizer_of: Callable[[str], Any], model_file: Path, kind: str, prompt: str, completion: str
) -> None:
    expected = sentencepiece.SentencePieceProcessor(model_file=str(model_file)).encode(
        prompt + completion, out_type=str
    )
    before, after, seam = fed(tokenizer_of(kind), prompt, completion)
    assert (before + after, seam) == (expected, "clean")
    assert after[0].startswith("▁") == completion.startswith(" ")


@pytest.mark.parametrize("kind", list(KINDS))
@given(text=st.text(st.sampled_from("hello wAlic\n\t .25=é今🙂"), min_size=2, max_size=24), at=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_any_cut_of_a_text_is_fed_as_the_text(
    tokenizer_of: Callable[[str], Any], kind: str, text: str, at: float
) -> None:
    tokenizer, cut = tokenizer_of(kind), 1 + int(at * (len(text) - 2))
    alone = tokenizer(text[:cut])["input_ids"]
    whole = tokenizer(text)["input_ids"]
    joined = join(tokenizer, build_prompt(tokenizer, text=text[:cut], raw=True), text[cut:], "prompt")
    ids = [*joined.prompt.ids, *joined.given]
    assert joined.prompt.ids == alone
    assert (joined.seam == "clean") == (whole[: len(alone)] == alone and len(whole) > len(alone))
    if joined.seam == "clean":
        assert ids == whole
    assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.decode(whole, skip_special_tokens=True)
    if kind in ("llama", "llama legacy", "sentencepiece"):  # decoding strips: count what the pieces hold
        spelled = ["".join(tokenizer.convert_ids_to_tokens(some)) for some in (ids, whole)]
        assert spelled[0].count("▁") == spelled[1].count("▁")


@pytest.mark.parametrize("kind", list(KINDS))
@given(text=st.text(st.sampled_from("hello wAlic\n .25=é今🙂"), min_size=2, max_size=24), at=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_whole_texts_tokens_are_cut_behind_the_one_that_spans(
    tokenizer_of: Callable[[str], Any], kind: str, text: str, at: float
) -> None:
    tokenizer, cut = tokenizer_of(kind), 1 + int(at * (len(text) - 2))
    prompt = build_prompt(tokenizer, text=text[:cut], raw=True)
    whole = tokenizer(text)["input_ids"]
    starts = [0] * len(whole)
    if tokenizer.is_fast:
        starts = [start for start, _ in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    try:
        joined = join(tokenizer, prompt, text[cut:], "whole")
    except InputError:  # nothing is left of the completion
        assert starts[-1] <= cut
        return
    assert [*joined.prompt.ids, *joined.given] == whole
    assert text.startswith(joined.prompt.text.rstrip("\ufffd"))  # a token may hold the first byte of a character
    if joined.seam == "whole" and tokenizer.is_fast:
        assert all(start >= cut for start in starts[len(joined.prompt.ids) :])
        assert starts[len(joined.prompt.ids) - 1] <= cut  # a token with the space before may be said to start behind it


def test_a_seam_inside_a_token() -> None:
    tokenizer = byte_level_tokenizer()
    whole = tokenizer.convert_ids_to_tokens(tokenizer("a sister of", add_special_tokens=False)["input_ids"])
    spanning = next(n for n, piece in enumerate(whole) if len(piece) > 2)
    cut = len("".join(whole[:spanning])) + 2
    assert fed(tokenizer, "a sister of"[:cut], "a sister of"[cut:], "whole") == (
        whole[: spanning + 1],
        whole[spanning + 1 :],
        "whole",
    )
    before, after, seam = fed(tokenizer, "a sister of"[:cut], "a sister of"[cut:], "prompt")
    assert ("".join(before + after), seam) == ("aĠsisterĠof", "prompt")
    assert before + after != whole


def test_the_end_of_a_word_has_its_mark() -> None:
    tokenizer = wordpiece_tokenizer()
    assert fed(tokenizer, "the", "re")[1][0].startswith("##")
    assert not fed(tokenizer, "the", " re")[1][0].startswith("##")


def test_special_tokens_in_either_part_count(tokenizer_of: Callable[[str], Any]) -> None:
    for kind in ("llama", "prepend"):
        tokenizer = tokenizer_of(kind)
        for prompt, completion in (("hello</s>", "hello"), ("hello", "</s>"), ("hello", " world</s>")):
            before, after, _ = fed(tokenizer, prompt, completion)
            expected = tokenizer.convert_ids_to_tokens(tokenizer(prompt + completion)["input_ids"])
            assert before + after == [piece for piece in expected if piece != "<s>"]


def test_a_prompt_of_ids_keeps_them(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of("llama")
    letters = tokenizer.convert_tokens_to_ids(["▁", "h", "e", "l", "l", "o"])
    for seam in ("prompt", "whole"):
        options = PromptOptions(seam=seam)
        prompt = read_prompt(tokenizer, letters, options)
        plan = plan_capture(llama(vocab_size=500), tokenizer, prompt, "hello world", None, 0, options)
        assert plan.prompt.ids == letters
        assert plan.seam == "prompt"
        assert plan.given is not None
        assert tokenizer.decode([*letters, *plan.given]) == "hellohello world"
        assert not tokenizer.convert_ids_to_tokens(plan.given[0]).startswith("▁")
    whole = tokenizer("hello")["input_ids"]
    plan = plan_capture(
        llama(vocab_size=500), tokenizer, read_prompt(tokenizer, whole, options), "hello", None, 0, options
    )
    assert (plan.seam, [*whole, *(plan.given or ())]) == ("clean", tokenizer("hellohello")["input_ids"])


def test_ids_that_end_within_a_character_are_continued(tokenizer_of: Callable[[str], Any]) -> None:
    for kind in ("byte level", "llama", "tiktoken"):
        tokenizer = tokenizer_of(kind)
        cut = tokenizer("🙂", add_special_tokens=False)["input_ids"][:-1]
        options = PromptOptions()
        plan = plan_capture(
            llama(vocab_size=600), tokenizer, read_prompt(tokenizer, cut, options), "hello", None, 0, options
        )
        assert (plan.prompt.ids, plan.seam) == (cut, "prompt")
        assert "".join(tokenizer.convert_ids_to_tokens(list(plan.given or ()))) == "hello"


def test_after_a_chat_template(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = byte_level_tokenizer(TEMPLATE)
    prompt = build_prompt(tokenizer, text="Who?")
    joined = join(tokenizer, prompt, "Alice.<end>", "prompt")
    assert joined.given == tuple(tokenizer("Alice.<end>", add_special_tokens=False)["input_ids"])
    assert joined.given[-1] == tokenizer.eos_token_id


def test_a_completion_without_tokens_is_refused() -> None:
    tokenizer = byte_level_tokenizer(TEMPLATE)
    prompt = build_prompt(tokenizer, text="Who?")
    for text, said in [("", "empty"), ("\udc00", "no valid Unicode")]:
        with pytest.raises(InputError, match=said):
            join(tokenizer, prompt, text, "prompt")
    with pytest.raises(InputError, match="no tokens"):
        join(wordpiece_tokenizer(), Prompt("the", [5]), "  ", "prompt")


def test_a_prompt_whose_last_token_ends_a_word_is_not_continued() -> None:
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "<begin>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator([*CORPUS, *WORDS], trainer)
    tokenizer = wrap(backend, unk_token="<unk>")
    for completion in ("lo", "lo ", "lo and"):
        with pytest.raises(InputError, match="cannot continue the prompt's tokens"):
            join(tokenizer, build_prompt(tokenizer, text="hel", raw=True), completion, "prompt")
    joined = join(tokenizer, build_prompt(tokenizer, text="hel", raw=True), "lo and", "whole")
    assert tokenizer.decode(joined.prompt.ids[1:]) == "hello"
    assert tokenizer.decode(list(joined.given)) == "and"


def test_a_decoder_that_puts_spaces_between_tokens_does_not_hide_a_new_word(tmp_path: Path) -> None:
    tokenizer = spaced_tokenizer(tmp_path)
    assert fed(tokenizer, "hello", " hello") == (["hello"], ["hello"], "clean")
    assert tokenizer.decode(tokenizer("hello hello")["input_ids"]) == "hello hello"
    for seam in ("prompt", "whole"):
        with pytest.raises(InputError, match=r"cannot continue|do not begin with"):
            fed(tokenizer, "hello", "hello", seam)


def test_what_cannot_be_continued_is_refused() -> None:
    tokenizer = wordpiece_tokenizer()  # without a piece for it in the middle of a word
    with pytest.raises(InputError, match=r"the completion '🦜' cannot continue the prompt's tokens.*seam='whole'"):
        join(tokenizer, build_prompt(tokenizer, text="the", raw=True), "🦜", "prompt")
    with pytest.raises(InputError, match="part of the prompt's last token"):
        join(tokenizer, build_prompt(tokenizer, text="th", raw=True), "e", "whole")


@pytest.mark.parametrize("seam", ["prompt", "whole"])
def test_the_store_says_how(tmp_path: Path, seam: str) -> None:
    tokenizer = byte_level_tokenizer()
    for prompt, completion, expected in (("Who is", " Bob", "clean"), ("Alice and B", "ob are", seam)):
        store = tmp_path / f"{expected}.zarr"
        capture(llama(), tokenizer, prompt, store, raw=True, completion=completion, seam=seam)
        about = attnlens.open(store)[0].metadata
        assert about.seam == expected
        assert about.prompt + about.completion == prompt + completion
        assert (
            b"".join(map(attnlens.open(store)[0].token_bytes, range(1, about.n_token))).decode() == prompt + completion
        )
