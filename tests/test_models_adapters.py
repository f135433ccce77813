"""A folder with an adapter: loaded with it, and said so in the store, or refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file

from attnlens.benchmarks.models.gguf_files import write_gguf
from attnlens.capture import capture
from attnlens.capture.adapters import adapters_of
from attnlens.capture.models import load
from attnlens.schemas.errors import MissingExtraError, ModelError
from tiny import byte_level_tokenizer, llama, write_hf, write_meta

# what making an adapter says, of peft's own use of transformers
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]

IDS = torch.tensor([[1, 5, 9, 200, 31, 7]])
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
KINDS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(**LORA),
    "dora": lambda: peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True, rank_pattern={"q_proj": 2}),
    "whole layers": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[3, 5, 9]),
    "embedding": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


def adapted(config: Any) -> Any:
    """The model of `write_hf` with an adapter of that kind, every weight of which counts."""
    torch.manual_seed(3)
    model = peft.get_peft_model(llama(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write(folder: Path, kind: str = "lora", *, beside: bool = False) -> Any:
    """`folder/base` and `folder/ada`, an adapter alone or beside a copy of the base; returns the model with it."""
    write_hf(folder / "base", dtype="float32")
    model = adapted(KINDS[kind]())
    model.save_pretrained(folder / "ada")
    if beside:
        shutil.copytree(folder / "base", folder / "ada", dirs_exist_ok=True)
    edit(folder / "ada", base_model_name_or_path="/of/another/machine" if beside else str(folder / "base"))
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(folder), device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_loaded_with_its_adapter(tmp_path: Path, kind: str, beside: bool) -> None:
    expected = logits(write(tmp_path, kind, beside=beside))
    loaded = load(str(tmp_path / "ada"), device="cpu")
    assert torch.allclose(logits(loaded.model), expected, atol=1e-5)
    assert not torch.allclose(logits(load(str(tmp_path / "base"), device="cpu").model), expected, atol=1e-3)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.id == ("ada" if beside else "base")
    (adapter,) = loaded.adapters
    assert adapter.name == ("default" if beside else "ada")
    assert adapter.active
    assert not adapter.merged


def digest(folder: Path) -> str:
    """By the words of docs/format.md, from the file."""
    total = hashlib.sha256()
    state = load_file(folder / "adapter_model.safetensors")
    for name in sorted(name.removeprefix("base_model.model.") for name in state):
        tensor = state[f"base_model.model.{name}"]
        total.update(f"{name} float32 {'x'.join(map(str, tensor.shape))}\n".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def test_what_is_said_about_an_adapter(tmp_path: Path) -> None:
    model = write(tmp_path, "whole layers")
    (adapter,) = load(str(tmp_path / "ada"), device="cpu").adapters
    assert (adapter.type, adapter.rank, adapter.scaling) == ("LORA", 4, 2.0)
    assert adapter.targets == ["lm_head", "q_proj", "v_proj"]
    assert adapter.digest == digest(tmp_path / "ada")
    (own,) = adapters_of(model)
    assert own == adapter.model_copy(update={"name": "default"})
    with model.disable_adapter():
        assert not adapters_of(model)[0].active
    model.merge_adapter()
    assert adapters_of(model)[0].merged
    model.add_adapter("second", peft.LoraConfig(r=2, lora_alpha=3, target_modules=["k_proj"], rank_pattern={}))
    model.unmerge_adapter()
    first, second = adapters_of(model)
    assert (second.name, second.rank, second.scaling, second.active, first.active) == ("second", 2, 1.5, False, True)


def test_an_adapter_of_transformers_own_loading_is_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    model = llama()
    assert adapters_of(model) == ()
    model.load_adapter(str(tmp_path / "ada"))
    (adapter,) = adapters_of(model)
    assert adapter.digest == digest(tmp_path / "ada")
    try:
        model.disable_adapters()
    except ValueError as error:  # the newest transformers may want a peft that is not out yet
        pytest.skip(str(error))
    assert not adapters_of(model)[0].active


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_a_learned_prompt_is_described(kind: str) -> None:
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    (adapter,) = adapters_of(peft.get_peft_model(llama(), config))
    assert (adapter.rank, adapter.targets, adapter.active) == (None, [], True)


def test_folder_and_model_give_the_same_store(tmp_path: Path) -> None:
    model = write(tmp_path, "dora", beside=True)
    loaded = load(str(tmp_path / "ada"), device="cpu")
    stores = []
    settings: dict[str, Any] = {"raw": True, "max_new_tokens": 4, "temperature": 0}
    ways: list[tuple[str, Any, dict[str, Any]]] = [
        ("folder", loaded.model, {"origin": loaded.origin()}),
        ("python", model, {}),
    ]
    for name, given, more in ways:
        store = tmp_path / f"{name}.zarr"
        capture(given, byte_level_tokenizer(), "Alice and Bob", store, **settings, **more)
        stores.append(zarr.open_group(store, mode="r")["0000"])
    first: Any
    second: Any
    first, second = stores
    assert first["token_id"][:].tolist() == second["token_id"][:].tolist()
    np.testing.assert_allclose(first["attention_weight"][:], second["attention_weight"][:], atol=2.5e-4)
    (adapter,) = first.attrs["attnlens"]["model"]["adapters"]
    assert adapter["type"] == "LORA"
    assert adapter["digest"] == loaded.adapters[0].digest


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnlens.capture import extra

    write(tmp_path, beside=True)
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"holds an adapter.*needs peft.*pip install 'attnlens\[capture\]'"):
        load(str(tmp_path / "ada"), device="cpu")


@pytest.mark.parametrize("kind", ["lora", "dora", "whole layers"])
def test_every_tensor_of_an_adapter_is_used(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    path = tmp_path / "ada" / "adapter_model.safetensors"
    state = load_file(path)
    first = next(name for name in state if "lora_A" in name)
    other = first.replace("layers.0.", "layers.7.")
    save_file({**state, other: state[first].clone()}, path)
    assert f"the adapter of ada holds tensors that the model has no place for: {other.split('.lora')[0]}" in refusal(
        tmp_path / "ada"
    )
    save_file({name: tensor for name, tensor in state.items() if name != first}, path)
    assert "the adapter of ada has no weights for" in refusal(tmp_path / "ada")
    save_file({**state, first: torch.ones(4, 7)}, path)
    assert "the adapter of ada cannot be loaded" in refusal(tmp_path / "ada")


def test_an_adapter_that_does_more_than_change_weights(tmp_path: Path) -> None:
    write(tmp_path)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path / "ada")
    edit(tmp_path / "ada", base_model_name_or_path=str(tmp_path / "base"))
    assert "of type PROMPT_TUNING, which does more than change weights" in refusal(tmp_path / "ada")


def test_a_setting_that_peft_does_not_know(tmp_path: Path) -> None:
    write(tmp_path)
    edit(tmp_path / "ada", use_sideways_lora=False, sideways=None)
    assert load(str(tmp_path / "ada"), device="cpu").adapters
    edit(tmp_path / "ada", use_sideways_lora=True)
    assert "does not know: use_sideways_lora; a newer peft" in refusal(tmp_path / "ada")


def test_an_adapter_that_is_at_work_behind_some_tokens(tmp_path: Path) -> None:
    write(tmp_path)
    edit(tmp_path / "ada", alora_invocation_tokens=[5, 9])
    assert "the adapter of ada works only behind its alora_invocation_tokens" in refusal(tmp_path / "ada")
    own = adapted(peft.LoraConfig(**LORA, task_type="CAUSAL_LM", alora_invocation_tokens=[5, 9]))
    with pytest.raises(ModelError, match="alora_invocation_tokens"):
        adapters_of(own)
    with own.disable_adapter():
        assert [adapter.active for adapter in adapters_of(own)] == [False]


def test_an_adapter_beside_a_model_that_it_cannot_be_applied_to(tmp_path: Path) -> None:
    write(tmp_path)
    ada = tmp_path / "ada"
    (ada / "gguf").mkdir()
    write_gguf(ada / "gguf" / "tiny.gguf", llama())
    write_meta(ada / "meta")
    for layout, said in (("gguf", "a GGUF file"), ("meta", "Meta's layout")):
        edit(ada, base_model_name_or_path=layout)
        assert f"{ada / layout}, has no config.json: adapters are applied to models in Hug" in refusal(ada)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(ada / file, ada / layout)
            assert f"holds an adapter ({file}) beside a model in {said}" in refusal(ada / layout)
            (ada / layout / file).unlink()


def test_weights_of_an_adapter_without_its_config(tmp_path: Path) -> None:
    write(tmp_path, beside=True)
    (tmp_path / "ada" / "adapter_config.json").unlink()
    assert "the weights of an adapter (adapter_model.safetensors) and no adapter_config" in refusal(tmp_path / "ada")


def test_adapters_without_their_base(tmp_path: Path) -> None:
    write(tmp_path)
    folder = tmp_path / "ada"
    edit(folder, base_model_name_or_path="/of/another/machine")
    assert "the adapter ada names /of/another/machine as its base model, and there is no such folder" in refusal(folder)
    edit(folder, base_model_name_or_path=None)
    assert "does not name its base model" in refusal(folder)
    edit(folder, base_model_name_or_path="../base")  # moved together
    assert load(str(folder), device="cpu").id == "base"
    shutil.copytree(tmp_path / "base", tmp_path / "two")
    shutil.copy(folder / "adapter_config.json", tmp_path / "two")
    shutil.copy(folder / "adapter_model.safetensors", tmp_path / "two")
    edit(folder, base_model_name_or_path=str(tmp_path / "two"))
    assert "has an adapter of its own" in refusal(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "no weights of the adapter: expected adapter_model.safetensors" in refusal(folder)


def test_the_base_is_accounted_for(tmp_path: Path) -> None:
    """transformers reports what it knows of the adapter only, where it loads both."""
    write(tmp_path, beside=True)
    path = tmp_path / "ada" / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.mlp.up_proj.bias": torch.ones(48)}, path, {"format": "pt"})
    assert "does not use: model.layers.0.mlp.up_proj.bias" in refusal(tmp_path / "ada")


def test_an_adapter_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    write(tmp_path)
    assert "[assistant]" in load(str(tmp_path / "ada"), device="cpu").tokenizer.chat_template
    byte_level_tokenizer("{{ messages }}").save_pretrained(tmp_path / "ada")
    assert load(str(tmp_path / "ada"), device="cpu").tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_an_adapter_on_a_quantized_base(tmp_path: Path, quantize: str) -> None:
    expected = logits(write(tmp_path))
    loaded = load(str(tmp_path / "ada"), device="cpu", quantize=quantize)
    assert loaded.quantization is not None
    assert (loaded.quantization["quantized_modules"], loaded.quantization["kept_modules"]) == (21, ["lm_head"])
    found = logits(loaded.model)
    base = logits(load(str(tmp_path / "base"), device="cpu", quantize=quantize).model)
    assert float((found - expected).abs().mean()) < float((base - expected).abs().mean()) / 2


def test_an_adapter_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    expected = logits(write(tmp_path))
    edit(tmp_path / "ada", base_model_name_or_path="someone/base", revision=None)
    for name, commit in (("base", "0" * 40), ("ada", "1" * 40)):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        shutil.copytree(tmp_path / name, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    loaded = load("someone/ada", device="cpu")
    assert torch.allclose(logits(loaded.model), expected, atol=1e-5)
    assert (loaded.id, loaded.revision, loaded.adapters[0].name) == ("someone/base", "0" * 40, "someone/ada")
