"""Where a model's context ends: at its tables of positions, and not at a number that its configuration states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from typer.testing import CliRunner

import attnlens
from attnlens.benchmarks.models.examine import build
from attnlens.benchmarks.models.tiny_configs import names
from attnlens.benchmarks.models.tiny_overrides import NOT_BUILT
from attnlens.capture import capture
from attnlens.capture.context import context_of
from attnlens.capture.forecast.forecast import forecast
from attnlens.capture.run import CaptureOptions
from attnlens.cli import app
from attnlens.progress import Silent
from attnlens.schemas.errors import AttnlensError, InputError
from families import SMALL, byte_tokenizer

KINDS = (
    "bloom", "codegen", "ctrl", "gpt2", "gpt_neo", "gptj", "llama", "marian", "mixtral", "mpt", "opt", "phi3",
    "prophetnet", "roberta", "whisper", "xglm",
)  # fmt: skip
"""Learned tables, tables that are computed, in the middle of a layer, with rows before the first token's, one that
grows, biases of a fixed length; and models that have none."""
BEYOND = 150


def longest(model: Any) -> int | None:
    """The longest text that the model itself runs, by trying; None if that is more than BEYOND."""

    def runs(n_token: int) -> bool:
        try:
            with torch.no_grad():
                model(input_ids=torch.full((1, n_token), 7), use_cache=False)
        except (IndexError, RuntimeError):
            return False
        return True

    if runs(BEYOND):
        return None
    low, high = 20, BEYOND
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


def text(n_token: int) -> list[int]:
    return torch.randint(5, 250, (n_token,), generator=torch.Generator().manual_seed(1)).tolist()


def check_at_the_wall(model: Any, path: Path) -> None:
    """A capture goes up to where the model itself ends, and one token more is refused in one line."""
    wall = longest(model)
    model.generation_config.eos_token_id = None
    options: dict[str, Any] = {"lens": False, "value_norm": False, "temperature": 0}
    if wall is None:
        capture(model, byte_tokenizer(), text(BEYOND), path, max_new_tokens=2, **options)
        return
    capture(model, byte_tokenizer(), text(wall - 1), path, max_new_tokens=9, **options)
    found = attnlens.open(path)[0]
    assert (found.n_fed, len(found.token_id)) == (wall, wall + 1)
    assert any(
        note.startswith(f"stopped at the end of the model's context of {wall} tokens") for note in found.metadata.notes
    )
    with pytest.raises(InputError, match=f"{wall + 1} tokens long, the model's context holds {wall} ") as refusal:
        capture(model, byte_tokenizer(), text(wall), path.with_name("x.zarr"), token_ids=[5], **options)
    assert "\n" not in str(refusal.value)
    assert not path.with_name("x.zarr").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_wall_is_where_the_model_ends(kind: str) -> None:
    model = build(kind)
    wall = context_of(model).wall(BEYOND)
    assert (wall.n_token if wall is not None else None) == longest(model)


@pytest.mark.parametrize("kind", ["mpt", "roberta", "whisper", "xglm"])
def test_a_capture_goes_up_to_the_wall(kind: str, tmp_path: Path) -> None:
    check_at_the_wall(build(kind), tmp_path / "run.zarr")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", sorted(set(names()) - set(NOT_BUILT)))
def test_a_capture_of_any_class_goes_up_to_the_wall(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    try:
        capture(model, byte_tokenizer(), text(20), tmp_path / "short.zarr", max_new_tokens=1)
    except AttnlensError:
        pytest.skip("it cannot be captured")
    check_at_the_wall(model, tmp_path / "run.zarr")


def roberta() -> Any:
    """34 rows, and pad_token_id + 1 of them are before the first token's."""
    return t.RobertaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=34, pad_token_id=1, is_decoder=True,
    )  # fmt: skip


def qwen2() -> Any:
    """Qwen's recipe for long texts: YaRN over the context that is stated."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    return t.Qwen2Config(**{**SMALL, "max_position_embeddings": 32}, rope_parameters=rope)


def folder_of(path: Path, config: Any) -> Path:
    model = t.AutoModelForCausalLM.from_config(config)
    model.generation_config = t.GenerationConfig(pad_token_id=0)
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def command(verb: str, folder: Path, n_prompt: int, store: Path, *more: str) -> Any:
    ids = folder / "ids.json"
    ids.write_text(json.dumps(text(n_prompt)))
    arguments = ["-m", str(folder), "--token-ids", str(ids), "--quiet", "--dtype", "float32", "-o", str(store), *more]
    return CliRunner().invoke(app, [verb, *arguments])


def test_a_text_beyond_the_stated_context_goes_on_with_a_note(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", qwen2())
    said = command("capture", folder, 41, tmp_path / "run.zarr")
    assert said.exit_code == 0, said.output
    note = "41 tokens are in the text, max_position_embeddings of the configuration is 32: it goes on by rope yarn with"
    assert note in said.output
    assert note in " ".join(attnlens.open(tmp_path / "run.zarr")[0].metadata.notes)
    assert note in " ".join(command("plan", folder, 41, tmp_path / "x.zarr").output.split())
    ids = torch.tensor([text(41)])
    model = t.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        own = torch.stack(model(ids, output_attentions=True).attentions)[:, 0]
    found = torch.from_numpy(attnlens.open(tmp_path / "run.zarr")[0].attention.rows(range(41)))
    assert (found - own).abs().max() <= 2.5e-4


def test_a_plan_ends_where_a_capture_does(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", roberta())
    for verb in ("capture", "plan"):
        said = command(verb, folder, 33, tmp_path / "never.zarr")
        assert said.exit_code == 1
        assert "33 tokens long, the model's context holds 32 " in str(said.exception)
        assert "\n" not in str(said.exception)
    assert not (tmp_path / "never.zarr").exists()
    options = CaptureOptions(model=str(folder), output=tmp_path / "run.zarr", prompt="x" * 20, raw=True)
    planned = forecast(options, Silent())
    assert planned.capacity == 33
    assert any("context of 32 tokens" in note for note in planned.notes)
