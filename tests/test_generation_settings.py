"""Generation settings: the text is generate's, the distribution is that of transformers' own processors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

import attnlens
from attnlens.capture import capture
from attnlens.capture.batch.many import capture_many
from attnlens.capture.generation_fields import FIELDS
from attnlens.capture.settings import Settings
from attnlens.schemas.errors import InputError, ModelError
from families import SMALL, VOCABULARY, byte_tokenizer, tiny_model
from generated import NEW, PROMPT, generated, plain_text, prompt_ids, sampler

SEEDS = (0, 2)


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


OUTSIDE = {
    "bad_words_ids": [[5, VOCABULARY]],
    "sequence_bias": [[[VOCABULARY], 3.0]],
    "forced_eos_token_id": [5, VOCABULARY],
    "eos_token_id": VOCABULARY,
    "suppress_tokens": [5, VOCABULARY],
    "begin_suppress_tokens": [VOCABULARY],
    "forced_bos_token_id": VOCABULARY,
}


@pytest.mark.parametrize("name", list(OUTSIDE))
def test_a_setting_that_names_no_token_of_the_model_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"raw": True, "max_new_tokens": 4}
    said = rf"{name} names token {VOCABULARY}, and the model's vocabulary is 0 … {VOCABULARY - 1}"
    with pytest.raises(InputError, match=said):
        capture(
            tiny_model("llama"), byte_tokenizer(), PROMPT, tmp_path / "a", generation={name: OUTSIDE[name]}, **options
        )
    model = tiny_model("llama")
    setattr(model.generation_config, name, OUTSIDE[name])
    try:
        generated(model)
    except (ValueError, IndexError):  # what generate cannot do, either
        with pytest.raises(ModelError, match=rf"own settings, {said}; .*--generation {name}=null"):
            capture(model, byte_tokenizer(), PROMPT, tmp_path / "a", **options)
        assert not list(tmp_path.iterdir())
    else:
        capture(model, byte_tokenizer(), PROMPT, tmp_path / "a", **options)


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


class RoutedConfig(LlamaConfig):  # type: ignore[misc]
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
