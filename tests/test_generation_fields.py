"""No field of GenerationConfig is passed over: each is honoured, refused by name, or changes nothing."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import attnlens
from attnlens.capture import capture
from attnlens.capture.batch.many import capture_many
from attnlens.capture.generation_fields import FIELDS, asks
from attnlens.capture.models import load
from attnlens.capture.settings import parse_overrides
from attnlens.schemas.errors import AttnlensError, InputError, ModelError
from families import VOCABULARY, byte_tokenizer, tiny_model
from generated import PROMPT, generated, plain_text, prompt_ids, sampler
from tiny import write_hf


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
    odd = {
        "compile_config": {"mode": "default"},
        "continuous_batching_config": {},
        "use_mtp": True,
        "chat_format": "raw",
    }
    assert torch.equal(sampler(model, ids, odd).scores(torch.tensor(ids), logits), usual)
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


@pytest.mark.parametrize("derived", [True, False])
def test_a_field_of_the_checkpoints_file_that_transformers_drops_is_refused(derived: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_hf(folder)
    path = folder / "generation_config.json"
    held = {**json.loads(path.read_text()), "_from_model_config": derived, "dreams": 3}
    path.write_text(json.dumps(held))
    loaded = load(str(folder))
    with pytest.raises(ModelError, match=r"dreams=3.*--generation dreams=null"):
        capture(loaded.model, loaded.tokenizer, "Who?", tmp_path / "a.zarr", max_new_tokens=2)
    assert not (tmp_path / "a.zarr").exists()
    capture(loaded.model, loaded.tokenizer, "Who?", tmp_path / "a.zarr", max_new_tokens=2, generation={"dreams": None})


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
        (["TOP-K=3"], "did you mean top_k"),
        (["repetition_penalty=Infinity"], "expected a number above 0, and neither NaN nor infinite"),
        (["sequence_bias=[[[5], NaN]]"], "pairs, and neither NaN nor infinite"),
        (["length_penalty=-Infinity"], "neither NaN nor infinite"),
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
