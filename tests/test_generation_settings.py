"""Generation settings: the text is generate's, the distribution is that of transformers' own processors, and no field
of GenerationConfig is passed over."""

from __future__ import annotations

import inspect
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig

import attnlens
from attnlens.capture import capture
from attnlens.capture.batch.many import capture_many
from attnlens.capture.generation_fields import FIELDS, asks
from attnlens.capture.sampling import Sampler
from attnlens.capture.settings import Generation, Settings, parse_overrides
from attnlens.schemas.errors import AttnlensError, InputError, ModelError
from families import SMALL, VOCABULARY, byte_tokenizer, tiny_model

NEW = 14
SEEDS = (0, 2)
PROMPT = "abcabcab"


def prompt_ids() -> list[int]:
    found: list[int] = byte_tokenizer().encode(PROMPT)
    return found


def generated(model: Any, prompt: list[int] | None = None, **options: Any) -> list[int]:
    """What transformers' own `generate` writes after the prompt."""
    ids = torch.tensor([prompt or prompt_ids()])
    chosen = {"max_new_tokens": NEW, "do_sample": False, **options}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), tokenizer=byte_tokenizer(), **chosen)
    text: list[int] = out[0, ids.shape[1] :].tolist()
    return text


@cache
def plain_text(seed: int) -> list[int]:
    """The greedy text of the model as it is; it ends at the length only, and is no repetition of one token."""
    text = generated(tiny_model("llama", seed=seed))
    assert len(text) == NEW
    assert len(set(text)) > 4
    return text


def stop_strings_of(text: list[int]) -> list[str]:
    """Two tokens that follow each other in the text, and a string that never comes."""
    pairs = [
        bytes(token - 3 for token in text[at : at + 2]) for at in range(1, NEW - 1) if max(text[at : at + 2]) < 259
    ]
    found = [pair.decode() for pair in pairs if pair.isascii() and pair.decode().isprintable()]
    return [found[0], "never comes"]


def cases(seed: int) -> dict[str, Any]:
    """A value of every honoured setting, chosen so that it changes the greedy text (or, of `sampling`, draws)."""
    text = plain_text(seed)
    ids = prompt_ids()
    return {
        "min_length": {"min_length": len(ids) + 6, "eos_token_id": text[2]},
        "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": [text[2], text[3]]},
        "max_time": {"max_time": 1e-9},
        "stop_strings": {"stop_strings": stop_strings_of(text)},
        "eos_token_id": {"eos_token_id": [7, text[4]]},
        "forced_eos_token_id": {"forced_eos_token_id": [2]},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [3, 3.0]},
        "repetition_penalty": {"repetition_penalty": 4.0},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 6.0},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1, "sequence_bias": [[[ids[2]], 60.0]]},
        "bad_words_ids": {"bad_words_ids": [[text[1]], [text[2], text[3]]]},
        "sequence_bias": {"sequence_bias": [[[text[0], 9], 80.0], [[9, 11], 80.0]]},
        "suppress_tokens": {"suppress_tokens": [text[0], text[3]]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [text[0]]},
        "forced_bos_token_id": {"forced_bos_token_id": 50},
        "remove_invalid_values": {"remove_invalid_values": True},
        "renormalize_logits": {"renormalize_logits": True},
        "top_k": {"top_k": 3},
        "min_p": {"min_p": 0.2},
        "top_h": {"top_h": 0.4},
        "typical_p": {"typical_p": 0.5},
        "epsilon_cutoff": {"epsilon_cutoff": 0.05},
        "eta_cutoff": {"eta_cutoff": 0.2},
    }


HONOURED = sorted(name for name, field in FIELDS.items() if field.how == "honoured")
SAMPLING = sorted(name for name, field in FIELDS.items() if field.how == "sampling")
SAME_TEXT = ("remove_invalid_values", "renormalize_logits", "max_time")
"""Settings that change no greedy text of finite logits, or the time of which is not ours to say."""


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_text_is_that_of_generate_for_every_honoured_setting(seed: int, tmp_path: Path) -> None:
    found = cases(seed)
    assert sorted(found) == sorted(HONOURED + SAMPLING)
    first = {"forced_bos_token_id": [1]}  # it forces the second token of a text
    asked = [{"id": name, "prompt": first.get(name, PROMPT), "generation": found[name]} for name in found]
    model = tiny_model("llama", seed=seed)
    options: dict[str, Any] = {"raw": True, "max_new_tokens": NEW, "temperature": 0, "settings": Settings(lens=False)}
    report = capture_many(model, byte_tokenizer(), asked, tmp_path / "run.zarr", **options)
    assert not report.failures
    store = attnlens.open(tmp_path / "run.zarr")
    for name, setting in found.items():
        text = store[name].token_id[store[name].n_prompt :].tolist()
        expected = generated(model, first.get(name), **setting)
        if FIELDS[name].how == "honoured" and name not in SAME_TEXT:
            others = {field: value for field, value in setting.items() if field != name}
            assert expected != generated(model, first.get(name), **others), (
                f"{name} changes nothing, choose another value"
            )
        assert text == expected, name
        about = store[name].metadata.sampling
        assert about.overrides == setting
        held = {field: value for field, value in setting.items() if FIELDS[field].how == "honoured"}
        assert about.generation_config == {"eos_token_id": 2, **held}


def test_the_models_own_settings_give_the_text_of_generate(tmp_path: Path) -> None:
    text = plain_text(0)
    model = tiny_model("llama")
    model.generation_config.update(suppress_tokens=[text[0]], no_repeat_ngram_size=2, eos_token_id=[text[5]])
    model.generation_config.min_new_tokens = 9
    capture(model, byte_tokenizer(), PROMPT, tmp_path / "a.zarr", raw=True, max_new_tokens=NEW, temperature=0)
    store = attnlens.open(tmp_path / "a.zarr")[0]
    assert store.token_id[store.n_prompt :].tolist() == generated(model) != text
    null = {"suppress_tokens": None, "no_repeat_ngram_size": None, "min_new_tokens": None, "eos_token_id": None}
    options: dict[str, Any] = {"raw": True, "max_new_tokens": NEW, "temperature": 0, "generation": null}
    capture(model, byte_tokenizer(), PROMPT, tmp_path / "b.zarr", **options)
    store = attnlens.open(tmp_path / "b.zarr")[0]
    assert store.token_id[store.n_prompt :].tolist() == generated(model, **null) == text
    assert (store.metadata.sampling.generation_config, store.metadata.sampling.overrides) == ({}, null)


def sampler(model: Any, ids: list[int], overrides: dict[str, Any] | None = None, **options: Any) -> Sampler:
    generation = Generation(**{"max_new_tokens": NEW, "temperature": 0.8, "overrides": overrides or {}, **options})
    return Sampler(model, byte_tokenizer(), generation, ids, torch.device("cpu"))


@pytest.mark.parametrize("name", [*HONOURED, *SAMPLING, "all of them", "none"])
@pytest.mark.parametrize("seed", SEEDS)
def test_warped_distribution_is_that_of_transformers_processors(name: str, seed: int) -> None:
    """To 1e-6, at every token that generate draws, from the logits that it had."""
    found = cases(seed)
    together = {**found["suppress_tokens"], **found["repetition_penalty"], **found["top_k"], **found["min_p"]}
    setting = {"none": {}, "all of them": together}.get(name) if name not in found else found[name]
    assert setting is not None
    model, ids = tiny_model("llama", seed=seed), prompt_ids()
    torch.manual_seed(1)
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        tokenizer=byte_tokenizer(),
        max_new_tokens=NEW,
        do_sample=True,
        temperature=0.8,
        top_p=0.9,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **setting,
    )
    ours = sampler(model, ids, setting)
    for step, (logits, scores) in enumerate(zip(out.logits, out.scores, strict=True)):
        before = logits[0].clone()
        timeline = out.sequences[0, : len(ids) + step]
        probabilities = torch.softmax(ours.scores(timeline, logits[0]), -1)
        np.testing.assert_allclose(probabilities, torch.softmax(scores[0], -1), rtol=0, atol=1e-6)
        assert torch.equal(before, logits[0])  # what the store keeps of the model is from before
        if name != "max_time":
            assert ours.is_over(out.sequences[0, : len(ids) + step + 1]) == (
                step + 1 == len(out.scores) and len(out.scores) < NEW
            ) or (step + 1 == NEW)


def test_what_nobody_sets_is_what_generate_sets() -> None:
    """transformers keeps 50 tokens where the model says nothing of `top_k`; null keeps all."""
    model, ids = tiny_model("llama"), prompt_ids()
    logits = torch.linspace(0, 1, VOCABULARY)
    for overrides, count in ({}, 50), ({"top_k": None}, VOCABULARY), ({"top_k": 0}, VOCABULARY), ({"top_k": 7}, 7):
        chooser = sampler(model, ids, overrides, temperature=1, top_p=1)
        assert int(torch.isfinite(chooser.scores(torch.tensor(ids), logits)).sum()) == count
        assert chooser.settings.get("top_k") == {50: 50, 7: 7}.get(count)


def test_draws_follow_the_distribution_of_three_settings_at_once() -> None:
    """2,000 draws against float64 arithmetic by hand: processors, then temperature, the k likeliest, the nucleus."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(VOCABULARY, generator=generator)
    order = logits.argsort(descending=True)
    ids = [1, int(order[1]), 40]
    setting = {"suppress_tokens": [int(order[0])], "repetition_penalty": 1.5, "top_k": 6}
    scores = logits.double().numpy().copy()
    for token in set(ids):
        scores[token] *= 1.5 if scores[token] < 0 else 1 / 1.5
    scores[int(order[0])] = -np.inf
    scores /= 1.7
    kept = np.argsort(-scores)[:6]
    expected = np.zeros(VOCABULARY)
    expected[kept] = np.exp(scores[kept]) / np.exp(scores[kept]).sum()
    enough = np.searchsorted(np.cumsum(np.sort(expected)[::-1]), 0.95) + 1
    expected[np.argsort(-expected)[enough:]] = 0
    expected /= expected.sum()
    chooser = sampler(tiny_model("llama"), ids, setting, temperature=1.7, top_p=0.95, seed=11)
    timeline = torch.tensor(ids)
    draws = np.bincount([chooser.choose(timeline, logits) for _ in range(2000)], minlength=VOCABULARY)
    assert 4 <= (expected > 0).sum() <= 6
    assert draws[expected == 0].sum() == 0
    likely = expected > 0
    chi = float((((draws - 2000 * expected) ** 2)[likely] / (2000 * expected[likely])).sum())
    freedom = int(likely.sum()) - 1
    p = float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(chi / 2)))
    assert p > 0.001


def test_suppressed_tokens_do_not_count_among_the_k_likeliest() -> None:
    """C2: three tokens can come, not two."""
    logits = torch.zeros(VOCABULARY)
    logits[[10, 11, 12, 13]] = torch.tensor([9.0, 8.0, 7.9, 7.8])
    chooser = sampler(tiny_model("llama"), [1], {"suppress_tokens": [10], "top_k": 3}, temperature=1, top_p=1)
    drawn = {chooser.choose(torch.tensor([1]), logits) for _ in range(200)}
    assert drawn == {11, 12, 13}


@pytest.mark.parametrize("name", ["min_new_tokens", "suppress_tokens", "bad_words_ids"])
def test_a_forbidden_token_that_is_the_likely_one_leaves_the_others(name: str, tmp_path: Path) -> None:
    """C1: with the command's own temperature and nucleus, which keep one token."""
    model, first = tiny_model("llama"), plain_text(0)[0]
    model.generation_config.eos_token_id = [first]
    setattr(model.generation_config, name, {"min_new_tokens": 4, "suppress_tokens": [first]}.get(name, [[first]]))
    if name == "bad_words_ids":  # which spares end tokens
        model.generation_config.eos_token_id = None
    capture(model, byte_tokenizer(), PROMPT, tmp_path / "run.zarr", raw=True, max_new_tokens=6)
    store = attnlens.open(tmp_path / "run.zarr")[0]
    text = store.token_id[store.n_prompt :].tolist()
    assert len(text) >= 4
    assert first not in text[:4]


@pytest.mark.parametrize("temperature", [0, 0.1])
def test_where_no_token_is_left_one_line_names_the_settings(temperature: float, tmp_path: Path) -> None:
    suppressed = {"suppress_tokens": list(range(VOCABULARY))}
    options: dict[str, Any] = {"raw": True, "temperature": temperature, "generation": suppressed}
    with pytest.raises(ModelError, match=r"no token can be chosen after token 9: .*suppress_tokens=") as caught:
        capture(tiny_model("llama"), byte_tokenizer(), PROMPT, tmp_path / "run.zarr", **options)
    assert "\n" not in str(caught.value)
    asked: list[Any] = [{"id": "a", "prompt": "ab", "generation": suppressed}, {"id": "b", "prompt": "ab"}]
    options = {"raw": True, "temperature": temperature, "max_new_tokens": 3}
    report = capture_many(tiny_model("llama"), byte_tokenizer(), asked, tmp_path / "many.zarr", **options)
    assert [one.id for one in report.failures] == ["a"]
    store = attnlens.open(tmp_path / "many.zarr")
    assert "suppress_tokens" in (store["a"].metadata.error or "")
    assert store["b"].status == "complete"


def test_logits_that_are_no_numbers_are_named() -> None:
    logits = torch.full((VOCABULARY,), float("nan"))
    with pytest.raises(ModelError, match="logits are not finite"):
        sampler(tiny_model("llama"), [1]).choose(torch.tensor([1]), logits)
    repaired = sampler(tiny_model("llama"), [1], {"remove_invalid_values": True})
    assert 0 <= repaired.choose(torch.tensor([1]), logits) < VOCABULARY


def test_the_time_limit_begins_with_the_text() -> None:
    chooser = sampler(tiny_model("llama"), [1], {"max_time": 0.2})
    assert not chooser.is_over(torch.tensor([1, 5]))
    time.sleep(0.21)
    assert chooser.is_over(torch.tensor([1, 5]))


class Wrapper(nn.Module):
    """As adapters wrap a model: not a model of transformers itself, its attributes passed on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


def test_a_wrapped_model_chooses_as_the_model_does() -> None:
    model, ids = tiny_model("llama"), prompt_ids()
    model.generation_config.update(repetition_penalty=1.3, top_k=9, suppress_tokens=[5])
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))
    one, other = sampler(model, ids), sampler(Wrapper(model), ids)
    assert torch.equal(one.scores(torch.tensor(ids), logits), other.scores(torch.tensor(ids), logits))
    assert one.settings == other.settings
    bare = nn.Linear(2, 2)  # neither configuration nor settings
    assert sampler(bare, ids).settings == {"eos_token_id": 2, "top_k": 50}


class RoutedConfig(LlamaConfig):
    """As code that comes with a model: `top_k` is of its experts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.top_k = 2


def test_a_configuration_is_no_place_for_settings_but_a_name_of_its_own_is_none() -> None:
    model = tiny_model("llama")
    model.config = RoutedConfig(**SMALL)
    assert sampler(model, [1]).settings == {"eos_token_id": 2, "top_k": 50}
    model = tiny_model("llama")
    model.config.num_beams = 4  # what generate refuses, too
    with pytest.raises(ModelError, match=r"modified the pretrained model configuration.*num_beams"):
        sampler(model, [1])


# The table of fields


def test_every_field_of_the_installed_version_is_in_the_table() -> None:
    """A new field of transformers fails this: say in `generation_fields.py` what becomes of it."""
    known = {*GenerationConfig().to_dict(), *vars(GenerationConfig())}
    known |= set(re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(GenerationConfig.__init__)))
    assert len(known) > 60
    assert not {name for name in known if not name.startswith("_")} - set(FIELDS)


def test_the_page_says_of_every_field_what_becomes_of_it() -> None:
    page = (Path(__file__).parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
    heads = {"option": "Options decide", "honoured": "Honoured**", "sampling": "Honoured in sampling"}
    heads |= {"refused": "Refused", "idle": "Without effect"}
    parts = {part.split("*")[0]: part for part in re.split(r"\n\*\*", page)[1:]}
    for how, head in heads.items():
        part = parts[head.rstrip("*")]
        named = set(re.findall(r"`(\w+)`", part))
        assert named == {name for name, field in FIELDS.items() if field.how == how}, how
        assert all(field.why in part for field in FIELDS.values() if field.how == how)


REFUSED: dict[str, Any] = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "num_return_sequences": 3,
    "constraints": [1],
    "force_words_ids": [[5]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.5},
    "token_healing": True,
    "assistant_ensemble_weight": 0.5,
    "is_assistant": True,
    "prefill_chunk_size": 4,
    "cache_implementation": "quantized",
}


def test_each_refused_field_has_a_value_here() -> None:
    assert set(REFUSED) == {name for name, field in FIELDS.items() if field.how == "refused"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_is_not_done_is_refused_by_name(name: str) -> None:
    model = tiny_model("llama")
    setattr(model.generation_config, name, REFUSED[name])
    with pytest.raises(ModelError, match=rf"{name}=.*leave it out by --generation {name}=(null|1|false) "):
        sampler(model, [1], temperature=0)
    with pytest.raises(InputError, match=name):
        sampler(tiny_model("llama"), [1], {name: REFUSED[name]})
    undone = sampler(model, [1], {name: FIELDS[name].neutral[0]}, temperature=0)
    assert undone.settings == {"eos_token_id": 2}


def test_a_text_that_is_given_is_not_chosen_by_whatever_setting(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.num_beams = 4
    options: dict[str, Any] = {"raw": True, "temperature": 0, "max_new_tokens": 3}
    with pytest.raises(ModelError, match="--generation num_beams=1"):
        capture(model, byte_tokenizer(), PROMPT, tmp_path / "run.zarr", **options)
    asked: list[Any] = [{"id": "a", "prompt": PROMPT}]
    with pytest.raises(ModelError, match="--generation num_beams=1"):
        capture_many(model, byte_tokenizer(), asked, tmp_path / "run.zarr", **options)
    assert not (tmp_path / "run.zarr").exists()
    asked += [{"id": "b", "prompt": PROMPT, "completion": "d"}]
    asked += [{"id": "c", "prompt": PROMPT, "generation": {"num_beams": 1}}]
    report = capture_many(model, byte_tokenizer(), asked, tmp_path / "run.zarr", **options)
    assert [one.id for one in report.failures] == ["a"]
    store = attnlens.open(tmp_path / "run.zarr")
    assert [found.status for found in store] == ["failed", "complete", "complete"]
    assert "num_beams=4" in (store["a"].metadata.error or "")
    assert store["b"].metadata.sampling.generation_config == {}
    assert store["c"].metadata.sampling.overrides == {"num_beams": 1}


IDLE: dict[str, Any] = {
    "early_stopping": True,
    "length_penalty": 0.3,
    "diversity_penalty": 0.5,
    "low_memory": True,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.2,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 2,
    "use_cache": False,
    "cache_config": {},
    "max_cache_len": 64,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "decoder_start_token_id": 7,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "disable_compile": True,
}
NOT_RUN = {
    *("assistant_early_exit", "speculation_type", "use_mtp"),  # need a second model, or heads that few have
    *("return_dict_in_generate", "return_legacy_cache", "compile_config", "continuous_batching_config"),
    *("transformers_version", "chat_format", "max_window_size", "user_token_id", "assistant_token_id"),
}


def test_each_idle_field_changes_nothing_in_generate_and_nothing_here() -> None:
    assert {*IDLE, *NOT_RUN} == {name for name, field in FIELDS.items() if field.how == "idle"}
    model, ids = tiny_model("llama"), prompt_ids()
    known = GenerationConfig().to_dict()
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))
    usual = sampler(model, ids).scores(torch.tensor(ids), logits)
    for name, value in IDLE.items():
        if name in known:
            assert generated(model, **{name: value}) == plain_text(0), name
        chooser = sampler(model, ids, {name: value})
        assert torch.equal(chooser.scores(torch.tensor(ids), logits), usual), name
        assert chooser.settings == sampler(model, ids).settings
    for kind in FIELDS["cache_implementation"].neutral:
        if kind in ("dynamic", "static"):
            assert generated(model, cache_implementation=kind) == plain_text(0)


def test_a_rope_that_follows_the_length_needs_the_cache() -> None:
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model.generation_config.use_cache = False
    with pytest.raises(ModelError, match=r"use_cache=False.*--generation use_cache=true"):
        sampler(model, [1])


def test_a_field_that_nobody_knows_is_refused_unless_unset() -> None:
    model = tiny_model("llama")
    model.generation_config.dreams = 3
    with pytest.raises(ModelError, match=r"dreams=3.*--generation dreams=null"):
        sampler(model, [1])
    sampler(model, [1], {"dreams": None})
    model.generation_config.dreams = None
    sampler(model, [1])
    with pytest.raises(InputError, match="no generation setting 'num_beems'; did you mean num_beams"):
        sampler(model, [1], {"num_beems": None})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["num_beems=1"], "'num_beems'; did you mean num_beams"),
        (["top_k=many"], "top_k is 'many', expected a whole number"),
        (["top_k=2.5"], "top_k is 2.5"),
        (["top_k=true"], "top_k is True"),
        (["typical_p=1.5"], "at most 1"),
        (["bad_words_ids=[7]"], "list of lists"),
        (["stop_strings="], "stop_strings is '', expected a text"),
        (["temperature=0.5"], "temperature is decided by --temperature"),
        (["top_p=null"], "--top-p"),
        (["do_sample=true"], "--temperature"),
        (["max_new_tokens=5"], "--max-new-tokens"),
        (["max_length=5"], "--max-new-tokens"),
        (["num_beams=4"], "num_beams=4 is not done here: it searches with beams"),
        (["top_k=1", "top_k=2"], "twice"),
        (["top_k"], "expected FIELD=VALUE"),
    ],
)
def test_overrides_that_cannot_be_used(fields: list[str], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        parse_overrides(fields)
    assert "\n" not in str(caught.value)


def test_overrides_are_json_or_text() -> None:
    found = parse_overrides(["num_beams=1", "stop_strings=the end", "repetition_penalty=2", "top_k=null"])
    assert found == {"num_beams": 1, "stop_strings": "the end", "repetition_penalty": 2.0, "top_k": None}
    assert isinstance(found["repetition_penalty"], float)
    assert not asks("num_beams", 1)
    assert asks("num_beams", True)


def test_settings_that_contradict_each_other_are_told_in_one_line() -> None:
    fields = {"exponential_decay_length_penalty": [3, 2.0], "eos_token_id": None}
    with pytest.raises(InputError, match="exponential_decay_length_penalty acts on the end token") as caught:
        sampler(tiny_model("llama"), [1], fields)
    assert "\n" not in str(caught.value)
    with pytest.raises(AttnlensError, match=r"suppress_tokens=\[5\]"):
        # Refused as they are read from transformers 5.20 or so on, before when no token is left.
        sampler(tiny_model("llama"), [1], {"forced_bos_token_id": 5, "suppress_tokens": [5]}).choose(
            torch.tensor([1]), torch.zeros(VOCABULARY)
        )
    chooser = sampler(tiny_model("llama"), [1], {"sequence_bias": {(VOCABULARY + 5,): 2.0}})
    with pytest.raises(ModelError, match=r"sequence_bias.* fail at token 1: .*vocabulary size"):
        chooser.choose(torch.tensor([1]), torch.zeros(VOCABULARY))
