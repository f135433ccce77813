"""Meta's original layout: values, shards, tokenizer, chat format, and one line for every way it can be broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.capture.models import load
from attnlens.capture.models.meta_tokenizer import PATTERN, SPECIAL, read_tiktoken, tiktoken_tokenizer
from attnlens.capture.prompt import build_prompt
from attnlens.schemas.errors import AttnlensError, InputError, ModelError
from tiny import meta_logits, write_meta, write_tiktoken

ORACLES = Path(__file__).resolve().parents[2] / "shared" / "oracles"
IDS = [300, 7, 260, 97, 98, 555, 3, 3, 271, 40]


def logits_of(folder: Path, **options: Any) -> torch.Tensor:
    model = load(str(folder), device="cpu", **options).model
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].double()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "tied"),
    [
        ({}, False),
        ({"n_kv_heads": 4}, False),
        ({"n_kv_heads": 1, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0}, False),
        ({"use_scaled_rope": True, "rope_theta": 500000.0}, False),
        ({"vocab_size": -1}, True),
    ],
)
def test_the_logits_are_those_of_metas_equations(tmp_path: Path, changes: dict[str, Any], tied: bool) -> None:
    params, state = write_meta(tmp_path, changes, tied=tied)
    np.testing.assert_allclose(logits_of(tmp_path), meta_logits(params, state, IDS), atol=2e-5)


@pytest.mark.parametrize("embedding_axis", [0, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_two_shards_are_one_model(tmp_path: Path, embedding_axis: int, tied: bool) -> None:
    write_meta(tmp_path / "one", tied=tied)
    write_meta(tmp_path / "two", tied=tied, ranks=2, embedding_axis=embedding_axis)
    assert torch.equal(logits_of(tmp_path / "one"), logits_of(tmp_path / "two"))


def test_original_subfolder_and_its_parents_name(tmp_path: Path) -> None:
    write_meta(tmp_path / "Llama-9" / "original")
    (tmp_path / "Llama-9" / "config.json").write_text("{}")  # without weights, so not a folder transformers could load
    loaded = load(str(tmp_path / "Llama-9"), device="cpu")
    assert loaded.id == "Llama-9"
    assert str(tmp_path) not in json.dumps(loaded.model.config.to_dict()) + repr(loaded.tokenizer.name_or_path)


def test_checkpoint_dtype_and_asked_dtype(tmp_path: Path) -> None:
    write_meta(tmp_path, dtype=torch.bfloat16)
    assert load(str(tmp_path), device="cpu").model.dtype == torch.bfloat16
    loaded = load(str(tmp_path), device="cpu", dtype="float32")
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.quantization is None


@pytest.mark.parametrize(
    ("changes", "expected"), [({}, 8192), ({"use_scaled_rope": True}, 131072), ({"max_seq_len": 64}, 64)]
)
def test_context_length(tmp_path: Path, changes: dict[str, Any], expected: int) -> None:
    write_meta(tmp_path, changes)
    assert load(str(tmp_path), device="cpu").model.config.max_position_embeddings == expected


def test_stop_tokens_and_chat_format(tmp_path: Path) -> None:
    write_meta(tmp_path)
    loaded = load(str(tmp_path), device="cpu")
    tokenizer = loaded.tokenizer
    assert loaded.model.generation_config.eos_token_id == [301, 308, 309]
    assert tokenizer.convert_ids_to_tokens([300, 301, 306, 307, 308, 309, 555]) == [
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
        "<|reserved_special_token_246|>",
    ]  # fmt: skip
    prompt = build_prompt(tokenizer, text="  the sister \n", system=" Today Date: never\n\nBe brief ")

    def header(role: str) -> list[int]:
        return [306, *tokenizer(role, add_special_tokens=False)["input_ids"], 307, 10, 10]

    def body(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], 309]

    assert prompt.ids == [
        300,
        *header("system"),
        *body("Today Date: never\n\nBe brief"),
        *header("user"),
        *body("the sister"),
        *header("assistant"),
    ]
    assert build_prompt(tokenizer, text="the", raw=True).ids[0] == 300


def break_shard(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "consolidated.00.pth"
    shard = torch.load(path)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        shard.pop(key) if tensor is None else shard.__setitem__(key, tensor)
    torch.save(shard, path)


def damage(folder: Path, what: str) -> None:
    weights, params = folder / "consolidated.00.pth", folder / "params.json"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-2000])
    elif what == "empty":
        weights.write_bytes(b"")
    elif what == "no zip":
        weights.write_bytes(b"\x80\x02garbage" * 50)
    elif what == "pickled code":
        torch.save({"a": Path("x")}, weights)
    elif what == "no dictionary":
        torch.save([torch.zeros(1)], weights)
    elif what == "missing tensor":
        break_shard(folder, layers__1__attention__wo__weight=None)
    elif what == "unknown tensor":
        break_shard(folder, layers__0__attention__q_norm__weight=torch.ones(8))
    elif what == "shape":
        break_shard(folder, layers__1__feed_forward__w2__weight=torch.zeros(32, 8))
    elif what == "integers":
        break_shard(folder, layers__1__feed_forward__w2__weight=torch.zeros(32, 96, dtype=torch.int8))
    elif what == "no params":
        params.unlink()
    elif what == "params no json":
        params.write_text("{")
    elif what == "params key":
        params.write_text(json.dumps({**json.loads(params.read_text()), "n_experts": 8}))
    elif what == "params value":
        params.write_text(json.dumps({**json.loads(params.read_text()), "n_heads": 5}))
    elif what == "no tokenizer":
        (folder / "tokenizer.model").unlink()
    elif what == "short tokenizer":
        lines = (folder / "tokenizer.model").read_bytes().splitlines(keepends=True)
        (folder / "tokenizer.model").write_bytes(b"".join(lines[:280]))
    elif what == "tokenizer line":
        with (folder / "tokenizer.model").open("ab") as file:
            file.write(b"!!! x\n")
    elif what == "foreign tokenizer":
        (folder / "tokenizer.model").write_bytes(b"\nnothing like it")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("truncated", "consolidated.00.pth is damaged or cut short"),
        ("empty", "consolidated.00.pth is damaged or cut short (0 bytes)"),
        ("no zip", "consolidated.00.pth is damaged"),
        ("pickled code", "holds more than tensors"),
        ("no dictionary", "holds no dictionary of tensors"),
        ("missing tensor", "lacks layers.1.attention.wo.weight"),
        ("unknown tensor", "unknown tensors layers.0.attention.q_norm.weight"),
        ("shape", "layers.1.feed_forward.w2.weight has shape (32, 8), params.json asks for (32, 96)"),
        ("integers", "layers.1.feed_forward.w2.weight is torch.int8"),
        ("no params", "no params.json"),
        ("params no json", "params.json cannot be read"),
        ("params key", "n_experts: is not a key we know"),
        ("params value", "dim 32 is no multiple of n_heads 5"),
        ("no tokenizer", "no tokenizer"),
        ("short tokenizer", "has 536 tokens and the embedding 556 rows"),
        ("tokenizer line", "line 301: expected base64 and a rank"),
        ("foreign tokenizer", "neither a tiktoken vocabulary nor a sentencepiece model"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, what: str, said: str) -> None:
    write_meta(tmp_path)
    damage(tmp_path, what)
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path), device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "said"), [(1, "consolidated.01.pth is missing"), (3, "found 3 of 4 shards"), (0, "consolidated.00.pth")]
)
def test_a_missing_shard_is_named(tmp_path: Path, gone: int, said: str) -> None:
    write_meta(tmp_path, {"n_kv_heads": 4}, ranks=4)
    (tmp_path / f"consolidated.{gone:02d}.pth").unlink()
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path), device="cpu")
    assert said in str(caught.value)


def test_shards_of_two_checkpoints(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", ranks=2)
    write_meta(tmp_path / "b", ranks=2, seed=1)
    shutil.copy(tmp_path / "b" / "consolidated.01.pth", tmp_path / "a")
    with pytest.raises(ModelError, match=r"shards disagree on norm\.weight"):
        load(str(tmp_path / "a"), device="cpu")


def test_no_revision_of_a_folder(tmp_path: Path) -> None:
    write_meta(tmp_path)
    with pytest.raises(InputError, match="has no revisions"):
        load(str(tmp_path), revision="main")


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantized_on_the_cpu(tmp_path: Path, quantize: Any) -> None:
    pytest.importorskip("bitsandbytes")
    params, state = write_meta(tmp_path, {"dim": 64, "n_heads": 4})
    loaded = load(str(tmp_path), device="cpu", quantize=quantize)
    assert loaded.quantization is not None
    assert loaded.quantization["bits"] == int(quantize[0])
    assert loaded.quantization["type"] == {"8bit": "int8", "4bit": "nf4"}[quantize]
    with torch.no_grad():
        found = loaded.model(torch.tensor([IDS])).logits[0].double()
    exact = meta_logits(params, state, IDS)
    error = (found - exact).std() / exact.std()
    assert 0 < error < {"8bit": 0.1, "4bit": 0.5}[quantize]


def test_llama_2_tokenizer_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    from tiny import CORPUS

    (tmp_path / "text.txt").write_text("\n".join(CORPUS))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=420, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        character_coverage=0.99, minloglevel=2, allow_whitespace_only_pieces=True,
    )  # fmt: skip
    folder = tmp_path / "llama-2"
    write_meta(folder)
    shutil.move(tmp_path / "m.model", folder / "tokenizer.model")
    from tiny import META, meta_state

    state = meta_state(META, 420)
    state["rope.freqs"] = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.save(state, folder / "consolidated.00.pth")
    loaded = load(str(folder), device="cpu")
    pieces = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in [*CORPUS, "  two  spaces", "é\t日本\n\n🙂 12345", "<s> is text"]:
        if "<s>" not in text:
            assert loaded.tokenizer(text)["input_ids"] == [1, *pieces.encode(text)]
    assert loaded.model.config.max_position_embeddings == 4096
    assert loaded.model.generation_config.eos_token_id == 2
    assert not loaded.tokenizer.chat_template


TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=" \t\n\r\u00a0\u3000019ab", max_size=60),
    st.text(alphabet="ab the and -=*'", max_size=60),
    st.text(alphabet=st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF), max_size=10),
    st.text(alphabet=st.sampled_from("日本語한국어हिन्दीعربيไทยгде"), max_size=30),
)


def encoders(path: Path) -> tuple[Any, Any]:
    tiktoken = pytest.importorskip("tiktoken")
    ours = tiktoken_tokenizer(path)
    ranks = read_tiktoken(path)
    special = {token: len(ranks) + index for index, token in enumerate(SPECIAL)}
    return ours, tiktoken.Encoding("reference", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path = tmp_path_factory.mktemp("tiktoken") / "tokenizer.model"
    write_tiktoken(path)
    return encoders(path)


@pytest.fixture(scope="module")
def llama3_pair() -> tuple[Any, Any]:
    if not (ORACLES / "tokenizer.model").is_file():
        pytest.skip("no Llama 3 tokenizer here")
    return encoders(ORACLES / "tokenizer.model")


def check_pair(pair: tuple[Any, Any], text: str) -> None:
    ours, reference = pair
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ids == reference.encode(text, allowed_special="all")
    assert ours.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_small_vocabulary_gives_the_ids_of_tiktoken(small_pair: tuple[Any, Any], text: str) -> None:
    check_pair(small_pair, text)


@given(text=TEXTS)
@settings(max_examples=500, deadline=None)
def test_llama_3_gives_the_ids_of_tiktoken(llama3_pair: tuple[Any, Any], text: str) -> None:
    check_pair(llama3_pair, text)


def test_llama_3_special_tokens(llama3_pair: tuple[Any, Any]) -> None:
    ours, _ = llama3_pair
    assert len(ours) == 128256
    assert ours.convert_tokens_to_ids(["<|begin_of_text|>", "<|eom_id|>", "<|eot_id|>"]) == [128000, 128008, 128009]


def test_every_error_is_one_a_person_is_told(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("[]")
    with pytest.raises(AttnlensError):
        load(str(tmp_path))
