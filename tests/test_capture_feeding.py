"""The decode loop computes what transformers' own `generate` computes, keys that it drops on the way included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

import attnlens
from attnlens.capture import capture
from attnlens.schemas.errors import ModelError
from attnlens.store.verify import verify
from families import SMALL, byte_tokenizer

BOUNDARY, N_PROMPT, N_NEW = 16, 7, 24
PROMPT = torch.randint(5, 250, (N_PROMPT,), generator=torch.Generator().manual_seed(3)).tolist()


def strong(model: Any) -> Any:
    """The model with random weights, large enough for attention to be uneven; it never ends a text by itself."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.generation_config = t.GenerationConfig(pad_token_id=0)
    return model.eval()


def long_rope() -> Any:
    """A tiny Phi-3 that makes all keys anew when its original context of 16 tokens is passed."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "factor": 8.0,
        "original_max_position_embeddings": BOUNDARY,
    }
    config = t.Phi3Config(**SMALL, original_max_position_embeddings=BOUNDARY, rope_parameters=rope)
    return strong(t.Phi3ForCausalLM(config))


def dynamic_ntk() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return strong(t.LlamaForCausalLM(t.LlamaConfig(**{**SMALL, "max_position_embeddings": 16}, rope_parameters=rope)))


def roberta(**changes: Any) -> Any:
    config = t.RobertaConfig(
        **{
            **{key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
            "pad_token_id": 1,
            "is_decoder": True,
            **changes,
        }
    )
    return strong(t.RobertaForCausalLM(config))


def generate(model: Any, prompt: list[int], n_new: int = N_NEW) -> Any:
    """transformers' greedy generation with what it looked at."""
    ids = torch.tensor([prompt])
    model.set_attn_implementation("eager")
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_new,
        do_sample=False,
        return_dict_in_generate=True,
        output_attentions=True,
        output_logits=True,
    )


def run(model: Any, path: Path, prompt: list[int] = PROMPT, **options: Any) -> Any:
    wanted: dict[str, Any] = {"max_new_tokens": N_NEW, "temperature": 0}
    capture(model, byte_tokenizer(), prompt, path, **(wanted | options))
    assert not verify(path).problems
    return attnlens.open(path)[0]


def rows_of(out: Any, n_token: int) -> np.ndarray[Any, Any]:
    """Attention (layer, head, query, key): of the prompt, then the last row of each step."""
    steps = [out.attentions[0], *[[own[:, :, -1:] for own in step] for step in out.attentions[1:]]]
    n_fed = n_token - 1
    rows = np.zeros((len(steps[0]), steps[0][0].shape[1], n_fed, n_token), np.float32)
    first = 0
    for step in steps:
        for layer, own in enumerate(step):
            end = first + own.shape[2]
            rows[layer, :, first:end, end - own.shape[3] : end] = own[0].float().numpy()
        first = end
    return rows


def test_keys_that_are_made_anew_are_those_of_later_rows(tmp_path: Path) -> None:
    model = long_rope()
    out = generate(model, PROMPT)
    fed = out.attentions[BOUNDARY - N_PROMPT + 1][0].shape[2]
    assert fed in (BOUNDARY + 1, 1)  # transformers 5.1 drops the keys and feeds the new token alone
    found = run(model, tmp_path / "run.zarr", lens_points="all", residuals=True)
    assert found.token_id.tolist() == out.sequences[0].tolist()
    n_token = N_PROMPT + N_NEW
    own = rows_of(out, n_token)
    assert np.abs(found.attention.rows(range(n_token - 1)) - own).max() <= 2.5e-4
    for name, reduced in (("max", own.max(1)), ("mean", own.mean(1))):
        last = slice(N_PROMPT - 1, n_token - 1)
        assert np.abs(found.attention.reduced(name, last) - reduced[:, last]).max() <= 6e-4
    top = torch.softmax(torch.cat(out.logits), dim=-1).max(dim=-1).values.numpy()
    assert np.abs(found["lens_probability"][-1, N_PROMPT - 1 : n_token - 1, 0] - top).max() <= 1e-4
    then = "makes them again" if fed > 1 else "sees only the new token"
    assert any("token 16" in note and then in note for note in found.metadata.notes)


def test_streams_and_values_are_those_of_the_new_tokens(tmp_path: Path) -> None:
    # A layer sees one row of a pass that feeds the text again: the last one, of streams, middles and values alike.
    model = long_rope()
    found = run(model, tmp_path / "run.zarr", lens_points="all", residuals=True)
    if not any("makes them again" in note for note in found.metadata.notes):
        pytest.skip("this version of transformers does not feed the text again")
    ids = torch.tensor([found.token_id.tolist()])[:, : BOUNDARY + 1]
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
    embedded = model.model.embed_tokens(ids)[0, BOUNDARY].detach().numpy()
    assert np.abs(found["residual"][0, BOUNDARY] - embedded).max() <= 1e-6
    assert np.abs(found["residual"][1, BOUNDARY] - out.hidden_states[1][0, BOUNDARY].numpy()).max() <= 1e-4
    with torch.no_grad():
        layer = model.model.layers[0]
        value = layer.self_attn.qkv_proj(layer.input_layernorm(out.hidden_states[0]))[0, BOUNDARY, -16:].view(2, 8)
        weight = layer.self_attn.o_proj.weight.view(32, 4, 8)
        norms = [float((weight[:, head] @ value[head // 2]).norm()) for head in range(4)]
    assert np.abs(found["value_norm"][0, :, BOUNDARY] - norms).max() <= 1e-3 * max(norms)


def test_queries_and_keys_do_not_cross_the_boundary(tmp_path: Path) -> None:
    model = long_rope()
    with pytest.raises(ModelError, match="Phi3ForCausalLM: at token 16 its own generation drops all keys") as refusal:
        run(model, tmp_path / "run.zarr", attention="qk")
    assert "attention='dense'" in str(refusal.value)
    assert not (tmp_path / "run.zarr").exists()
    auto = run(model, tmp_path / "auto.zarr", attention="auto")
    assert auto.metadata.attention == "dense"
    assert "at token 16" in (auto.metadata.attention_choice or "")
    below = run(model, tmp_path / "below.zarr", attention="qk", max_new_tokens=BOUNDARY - N_PROMPT + 1)
    assert below.n_fed == BOUNDARY
    beyond = run(model, tmp_path / "beyond.zarr", [*PROMPT, *PROMPT, *PROMPT], attention="qk")
    assert beyond.metadata.attention == "qk"


def test_frequencies_that_grow_with_a_text_are_those_of_generate(tmp_path: Path) -> None:
    out = generate(dynamic_ntk(), PROMPT)
    found = run(dynamic_ntk(), tmp_path / "run.zarr")
    assert found.token_id.tolist() == out.sequences[0].tolist()
    assert np.abs(found.attention.rows(range(found.n_fed)) - rows_of(out, len(found.token_id))).max() <= 2.5e-4


def test_frequencies_that_another_text_has_left_are_not_used(tmp_path: Path) -> None:
    model, text = dynamic_ntk(), list(range(10, 30))
    fresh = run(dynamic_ntk(), tmp_path / "fresh.zarr", text, token_ids=[5])
    run(model, tmp_path / "long.zarr", list(range(10, 90)), token_ids=[5])
    after = run(model, tmp_path / "after.zarr", text, token_ids=[5])
    np.testing.assert_array_equal(after["attention_weight"][:], fresh["attention_weight"][:])


def test_positions_are_those_that_generate_tells(tmp_path: Path) -> None:
    # RoBERTa counts from pad_token_id + 1 by itself, and from 0 in `generate`.
    model = roberta()
    out = generate(model, PROMPT)
    found = run(model, tmp_path / "run.zarr")
    assert found.token_id.tolist() == out.sequences[0].tolist()
    assert np.abs(found.attention.rows(range(found.n_fed)) - rows_of(out, len(found.token_id))).max() <= 2.5e-4
    assert any("positions" in note for note in found.metadata.notes)
    ids = found.token_id.tolist()
    given = run(model, tmp_path / "given.zarr", ids[:N_PROMPT], token_ids=ids[N_PROMPT:])
    rows = range(found.n_fed)
    assert np.abs(given.attention.rows(rows) - found.attention.rows(rows)).max() <= 6e-4


class Wrapped(torch.nn.Module):
    """A model inside a class of somebody's own, which transformers cannot let generate."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Any, **kwargs: Any) -> Any:
        return self.model(input_ids=input_ids, **kwargs)

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()


def test_a_class_that_cannot_generate_is_called_plainly(tmp_path: Path) -> None:
    model = strong(t.LlamaForCausalLM(t.LlamaConfig(**SMALL)))
    out = generate(model, PROMPT)
    found = run(Wrapped(model), tmp_path / "run.zarr")
    ids = found.token_id.tolist()
    assert ids == out.sequences[0].tolist()[: len(ids)]
    assert (
        np.abs(
            found.attention.rows(range(found.n_fed)) - rows_of(out, N_PROMPT + N_NEW)[:, :, : found.n_fed, : len(ids)]
        ).max()
        <= 2.5e-4
    )


def test_a_rope_that_turns_without_dropping_keys_is_told(tmp_path: Path) -> None:
    """Llama keeps its old keys where Phi-3 makes them again: the same text given has other rows."""
    rope = long_rope().config.rope_parameters
    model = strong(t.LlamaForCausalLM(t.LlamaConfig(**SMALL, rope_parameters=dict(rope))))
    out = generate(model, PROMPT)
    found = run(model, tmp_path / "run.zarr", generation={"eos_token_id": None})
    ids = found.token_id.tolist()
    assert ids == out.sequences[0].tolist()
    assert np.abs(found.attention.rows(range(found.n_fed)) - rows_of(out, len(ids))).max() <= 2.5e-4
    (note,) = found.metadata.notes
    assert note.startswith(f"the rope's frequencies change at token {BOUNDARY} of a text that is generated")
    given = run(model, tmp_path / "given.zarr", PROMPT, token_ids=ids[N_PROMPT:])
    assert not given.metadata.notes
    rows = range(found.n_fed)
    assert np.abs(given.attention.rows(rows) - found.attention.rows(rows)).max() > 0.1
    for prompt, n_new in ((PROMPT, BOUNDARY - N_PROMPT + 1), ([*PROMPT, *PROMPT, *PROMPT], 3)):  # before it, and after
        other = run(model, tmp_path / "other.zarr", prompt, max_new_tokens=n_new, overwrite=True)
        assert not other.metadata.notes
