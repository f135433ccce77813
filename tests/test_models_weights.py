"""Every tensor of a checkpoint is in the model, or on a short list of harmless ones, or the model is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from attnlens import cli
from attnlens.benchmarks.models.examine import build
from attnlens.benchmarks.models.tiny_tokenizer import byte_tokenizer
from attnlens.benchmarks.models.unused import unused_refused
from attnlens.capture.models import load
from attnlens.capture.models.quantize import settle
from attnlens.capture.placeholders import refuse_placeholders
from attnlens.schemas.errors import InputError, ModelError
from tiny import META, byte_level_tokenizer, meta_logits, write_hf, write_meta

IDS = torch.tensor([[1, 5, 9, 200, 31, 7]])
State = dict[str, torch.Tensor]
LAYERS, WIDTH, KEYS, HIDDEN = 3, 32, 16, 48


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    write_hf(folder, dtype="float32")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "tiny")
    return tmp_path / "tiny"


def state_of(folder: Path) -> State:
    return dict(load_file(folder / "model.safetensors"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def refusal(folder: Path, kind: type[Exception] = ModelError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(str(folder), device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The layouts of a checkpoint


def write_safetensors(folder: Path, state: State) -> None:
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})


def write_sharded(folder: Path, state: State) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, files = sorted(state), [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for part, file in enumerate(files):
        save_file({name: state[name] for name in names[part::2]}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: files[at % 2] for at, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_bin(folder: Path, state: State) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(state, folder / "pytorch_model.bin")


def write_sharded_bin(folder: Path, state: State) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, files = sorted(state), [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    for part, file in enumerate(files):
        torch.save({name: state[name] for name in names[part::2]}, folder / file)
    index = {"metadata": {}, "weight_map": {name: files[at % 2] for at, name in enumerate(names)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


LAYOUTS: list[Callable[[Path, State], None]] = [write_safetensors, write_sharded, write_bin, write_sharded_bin]


@pytest.mark.parametrize("write", LAYOUTS)
def test_biases_that_the_config_does_not_ask_for(folder: Path, write: Callable[[Path, State], None]) -> None:
    sizes = {"q": WIDTH, "k": KEYS, "v": KEYS}
    biases = {
        f"model.layers.{layer}.self_attn.{part}_proj.bias": torch.ones(size)
        for layer in range(LAYERS)
        for part, size in sizes.items()
    }
    write(folder, {**state_of(folder), **biases})
    said = refusal(folder)
    assert "holds 9 tensors that LlamaForCausalLM does not use: model.layers.0.self_attn.k_proj.bias" in said
    assert "and 6 more" in said
    assert "ignore_weights" in said


@pytest.mark.parametrize("write", LAYOUTS)
def test_more_layers_than_the_config_asks_for(folder: Path, write: Callable[[Path, State], None]) -> None:
    write(folder, state_of(folder))
    edit(folder, num_hidden_layers=1)
    said = refusal(folder)
    assert "holds 18 tensors" in said
    assert "model.layers.1.input_layernorm.weight" in said
    assert "its config has 1 layers, and the checkpoint a layer 2" in said


@pytest.mark.parametrize("write", LAYOUTS)
def test_a_folder_as_it_was_saved_is_all_used(folder: Path, write: Callable[[Path, State], None]) -> None:
    original = logits(t.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"))
    write(folder, state_of(folder))
    loaded = load(str(folder), device="cpu")
    assert loaded.left_out == ()
    assert torch.allclose(logits(loaded.model), original, atol=1e-6)


def test_one_tensor_of_a_shard_that_the_index_does_not_name(folder: Path) -> None:
    state = state_of(folder)
    write_sharded(folder, state)
    shard = folder / "model-00001-of-00002.safetensors"
    save_file({**load_file(shard), "model.layers.0.mlp.up_proj.bias": torch.ones(HIDDEN)}, shard, {"format": "pt"})
    assert "does not use: model.layers.0.mlp.up_proj.bias" in refusal(folder)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    write_sharded(folder, state_of(folder))
    for part, other in ((1, 2), (2, 1)):
        shard = folder / f"model-0000{part}-of-00002.safetensors"
        first = sorted(load_file(shard))[0]
        theirs = folder / f"model-0000{other}-of-00002.safetensors"
        save_file({**load_file(theirs), first: 2 * load_file(shard)[first]}, theirs, {"format": "pt"})
        said = refusal(folder)
        assert first in said
        assert "is in both" in said
        write_sharded(folder, {**load_file(shard), **load_file(theirs)})


# Stored as other numbers


def coded(state: State, kind: torch.dtype, largest: float) -> State:
    """Every projection as codes and one scale, as quantized checkpoints have them."""
    made = {}
    for name, tensor in state.items():
        made[name] = tensor
        if name.endswith("_proj.weight"):
            scale = tensor.abs().max() / largest
            codes = tensor / scale
            made[name] = (codes.round() if kind == torch.int8 else codes).to(kind)
            made[f"{name}_scale"] = scale
    return made


CODES = {"float8_e4m3fn": (torch.float8_e4m3fn, 448.0), "int8": (torch.int8, 127.0)}


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("kind", CODES)
def test_codes_with_scales_and_no_quantization_config(
    folder: Path, kind: str, write: Callable[[Path, State], None]
) -> None:
    write(folder, coded(state_of(folder), *CODES[kind]))
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    said = refusal(folder)
    assert "stores model.layers.0.mlp.down_proj.weight, model.layers.0.mlp.gate_proj.weight" in said
    assert f"as {kind} with scales beside (model.layers.0.mlp.down_proj.weight_scale" in said


@pytest.mark.parametrize("kind", ["float8_e5m2", "uint8", "int64"])
def test_codes_without_scales(folder: Path, kind: str) -> None:
    state = state_of(folder)
    state["model.norm.weight"] = state["model.norm.weight"].to(getattr(torch, kind))
    write_safetensors(folder, state)
    assert f"stores model.norm.weight as {kind}" in refusal(folder)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_codes_are_not_quantized_once_more(folder: Path, quantize: str) -> None:
    write_safetensors(folder, coded(state_of(folder), *CODES["int8"]))
    assert "as int8 with scales beside" in refusal(folder, quantize=quantize)


@pytest.mark.parametrize("method", ["modelopt", "foo9", None])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_an_unknown_way_to_quantize(folder: Path, method: str | None, key: str) -> None:
    write_safetensors(folder, coded(state_of(folder), *CODES["int8"]))
    edit(folder, **{key: {"bits": 8, **({"quant_method": method} if method else {})}})
    assert f"quantized by {method or 'a method that it does not name'}, which transformers" in refusal(folder)


def test_scales_that_a_known_quantizer_does_not_apply(folder: Path) -> None:
    """fp8 of transformers multiplies with `weight_scale_inv`; a `weight_scale` would be dropped."""
    write_safetensors(folder, coded(state_of(folder), *CODES["float8_e4m3fn"]))
    edit(folder, quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic"})
    said = refusal(folder)
    assert "down_proj.weight_scale" in said or "triton" in said  # releases that need a GPU for fp8 say so


def blocks_of_float8(folder: Path, block: int = 16) -> tuple[State, State]:
    """The folder's tensors with projections in float8 and a scale for each block; and what these stand for."""
    packed, plain = {}, {}
    for name, tensor in state_of(folder).items():
        packed[name] = plain[name] = tensor
        if name.endswith("_proj.weight"):
            rows, columns = (size // block for size in tensor.shape)
            blocks = tensor.view(rows, block, columns, block)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            packed[name], packed[f"{name}_scale_inv"] = codes.reshape(tensor.shape), scale
            plain[name] = (codes.float() * scale[:, None, :, None]).reshape(tensor.shape)
    blocks_of = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    edit(folder, quantization_config=blocks_of)
    return packed, plain


def test_blocks_of_float8_that_transformers_unpacks(folder: Path) -> None:
    original = t.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    packed, plain = blocks_of_float8(folder)
    original.load_state_dict(plain)
    write_safetensors(folder, packed)
    try:
        loaded = load(str(folder), device="cpu")
    except ModelError as error:
        pytest.skip(f"this transformers unpacks them on a GPU only: {error}")
    assert torch.allclose(logits(loaded.model), logits(original), atol=1e-5)
    assert loaded.left_out == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.norm.weight", torch.int8),
        ("lm_head.weight", torch.float8_e4m3fn),
        ("model.layers.1.mlp.up_proj.weight", None),
    ],
)
def test_codes_that_a_known_quantizer_does_not_unpack(folder: Path, name: str, kind: torch.dtype | None) -> None:
    """Those of layers that it does not quantize would be cast to floats, and so would those that lost their scales."""
    packed, _ = blocks_of_float8(folder)
    if kind is None:
        del packed[f"{name}_scale_inv"]
        packed[name.replace("weight", "activation_scale")] = torch.ones(1)
    else:
        packed[name] = packed[name].to(kind)
    write_safetensors(folder, packed)
    said = refusal(folder)
    assert f"stores {name} as {str(kind or torch.float8_e4m3fn).removeprefix('torch.')} with no scales" in said or (
        "triton" in said or "GPU" in said  # releases that need a GPU for fp8 say so
    )


FOUR, EIGHT = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}


@pytest.mark.parametrize("bits", [FOUR, EIGHT])
def test_codes_of_bitsandbytes(folder: Path, tmp_path: Path, bits: dict[str, bool]) -> None:
    """As it saved them they are read; a config without the codes, or codes without all of their scales, is refused."""
    packed = tmp_path / "packed"
    options: Any = {"attn_implementation": "eager", "device_map": "cpu"}
    quantized = t.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=t.BitsAndBytesConfig(**bits), **options
    )
    settle(quantized)
    quantized.save_pretrained(packed)
    byte_level_tokenizer().save_pretrained(packed)
    loaded = load(str(packed), device="cpu")
    assert torch.allclose(logits(loaded.model), logits(quantized), atol=1e-5)
    assert loaded.left_out == ()
    edit(folder, quantization_config={"quant_method": "bitsandbytes", **bits})
    assert "model.layers.0.self_attn.q_proj.weight is stored as plain numbers" in refusal(folder)
    state = state_of(packed)
    lost = next(
        name for name in state if name.endswith("layers.1.mlp.up_proj.weight.nested_absmax" if bits is FOUR else "SCB")
    )
    write_safetensors(packed, {name: tensor for name, tensor in state.items() if name != lost})
    said = refusal(packed)
    assert lost.removesuffix(".nested_absmax").removesuffix(".SCB") in said
    assert ("lacks the scales of its scales" if bits is FOUR else "do not fit together") in said


# One weight, several tensors; no tensor, one weight


def test_an_expert_without_one_of_its_matrices(tmp_path: Path) -> None:
    """What transformers could not put together is said, not where it would have said so."""
    build("mixtral").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    state = state_of(tmp_path)
    lost = next(name for name in state if re.search(r"layers\.1\.\S*experts\.2\.w1\.weight", name))
    write_safetensors(tmp_path, {name: tensor for name, tensor in state.items() if name != lost})
    said = refusal(tmp_path)
    assert "for model.layers.1.mlp.experts.gate_up_proj do not fit together" in said
    assert "above report" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("name", "thing"), [("state_dict", {"a": torch.ones(2)}), ("epoch", 3)])
def test_a_file_that_holds_more_than_tensors(folder: Path, name: str, thing: Any) -> None:
    write_bin(folder, {**state_of(folder), name: thing})
    assert f"{name} in its weights is of type {type(thing).__name__}" in refusal(folder)


def test_two_tensors_for_one_weight(folder: Path) -> None:
    state = state_of(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    write_safetensors(folder, {**state, name.removeprefix("model."): 2 * state[name]})
    assert f"holds both layers.0.self_attn.q_proj.weight and {name}, which differ" in refusal(folder)
    write_safetensors(folder, {**state, name.removeprefix("model."): state[name]})
    assert torch.equal(load(str(folder), device="cpu").model.get_parameter(name), state[name])


def test_a_head_that_nothing_is_tied_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(folder)
    head = state.pop("lm_head.weight")
    write_safetensors(folder, state)
    assert "has no weights for lm_head.weight" in refusal(folder)
    monkeypatch.setattr(t.LlamaForCausalLM, "_keys_to_ignore_on_load_missing", ["lm_head.weight"])
    assert "has no weights for lm_head.weight" in refusal(folder)
    edit(folder, tie_word_embeddings=True)
    tied = load(str(folder), device="cpu").model
    assert torch.equal(tied.lm_head.weight, state["model.embed_tokens.weight"])
    assert not torch.equal(tied.lm_head.weight, head)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_weights_that_are_turned_over_while_they_are_quantized(tmp_path: Path, quantize: str) -> None:
    """GPT-2 keeps its matrices as (in, out); bitsandbytes has them as (out, in)."""
    torch.manual_seed(0)
    model = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=384, n_embd=64, n_layer=2, n_head=4, n_positions=32)).eval()
    model.save_pretrained(tmp_path)
    byte_level_tokenizer(None).save_pretrained(tmp_path)
    expected = logits(model)
    found = logits(load(str(tmp_path), device="cpu", quantize=quantize).model)
    assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
    state = state_of(tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight"
    write_safetensors(tmp_path, {**state, name: state[name].T.contiguous()})
    assert f"has weights of another shape for {name}" in refusal(tmp_path, quantize=quantize)


@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_weights_of_another_shape(folder: Path, quantize: str | None) -> None:
    edit(folder, intermediate_size=2 * HIDDEN)
    assert "has weights of another shape for model.layers.0.mlp.down_proj.weight" in refusal(folder, quantize=quantize)


# What may be left out


def rotary(base: float, scale: float = 1.0) -> State:
    frequencies = base ** -(torch.arange(0, 8, 2) / 8) / scale
    return {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies for layer in range(LAYERS)}


def accepted(folder: Path, added: State, **options: Any) -> dict[str, tuple[int, str]]:
    """What was left out, by name; the logits are those of the folder without `added`."""
    clean = state_of(folder)
    expected = logits(load(str(folder), device="cpu").model)
    write_safetensors(folder, {**clean, **added})
    loaded = load(str(folder), device="cpu", **options)
    assert torch.equal(logits(loaded.model), expected)
    assert sum(left.count for left in loaded.left_out) == len(added)
    return {left.tensors: (left.count, left.reason) for left in loaded.left_out}


def test_harmless_tensors_are_left_out_and_recorded(folder: Path) -> None:
    one = torch.ones(1)
    found = accepted(
        folder,
        {
            **rotary(10000.0),
            "model.layers.3.eh_proj.weight": one,
            "model.layers.3.self_attn.q_proj.weight": one,
            "mtp.layers.0.self_attn.q_proj.weight": one,
            "v_head.summary.weight": one,
            "v_head.summary.bias": one,
            "score.weight": one,
            "vision_tower.blocks.11.attn.qkv.weight": one,
            "vision_tower.blocks.11.attn.qkv.bias": one,
            "vision_tower.embeddings.position_ids": torch.tensor([3, 1]),
            "model.multi_modal_projector.linear_1.weight": one,
        },
    )
    ahead, image = "a head for several tokens ahead", "a part for images or sound, which a text never enters"
    other = "a head for something else than the next token"
    assert found == {
        "model.layers.*.self_attn.rotary_emb.inv_freq": (3, "rotary frequencies, as the model computes them"),
        "model.layers.*.eh_proj.weight": (1, ahead),
        "model.layers.*.self_attn.q_proj.weight": (1, ahead),
        "mtp.layers.*.self_attn.q_proj.weight": (1, ahead),
        "v_head.summary.weight": (1, other),
        "v_head.summary.bias": (1, other),
        "score.weight": (1, other),
        "vision_tower.*": (3, image),
        "model.multi_modal_projector.*": (1, image),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_rotary_frequencies(folder: Path, dtype: torch.dtype) -> None:
    assert len(accepted(folder, {name: tensor.to(dtype) for name, tensor in rotary(10000.0).items()})) == 1


@pytest.mark.parametrize(("base", "scale"), [(500000.0, 1.0), (10000.0, 4.0)])
def test_rotary_frequencies_of_another_model(folder: Path, base: float, scale: float) -> None:
    write_safetensors(folder, {**state_of(folder), **rotary(base, scale)})
    said = refusal(folder)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in said
    assert "it gives other rotary frequencies" in said


def gpt2(folder: Path, added: State) -> None:
    torch.manual_seed(0)
    config = t.GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1)
    t.GPT2LMHeadModel(config).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    write_safetensors(folder, {**state_of(folder), **added})


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_masks_that_old_files_hold(tmp_path: Path, dtype: torch.dtype) -> None:
    mask = torch.ones(64, 64).tril()[None, None].to(dtype)
    gpt2(tmp_path, {"transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    found = {left.tensors: left.reason for left in load(str(tmp_path), device="cpu").left_out}
    assert found.pop("transformer.h.*.attn.masked_bias") == "a constant of the causal mask"
    assert set(found) == {"transformer.h.*.attn.bias"}
    assert "that the model computes itself" in str(found) or "as the model computes it" in str(found)


@pytest.mark.parametrize("what", ["whole", "shifted", "numbers", "vector"])
def test_a_bias_by_the_name_of_a_mask(tmp_path: Path, what: str) -> None:
    """The class wants to hear of no `attn.bias`, whatever is in it."""
    square = torch.ones(1, 1, 64, 64)
    bias = {"whole": square, "shifted": square.tril(-1), "numbers": 0.5 * square.tril(), "vector": torch.ones(32)}[what]
    gpt2(tmp_path, {"transformer.h.1.attn.bias": bias})
    assert "does not use: transformer.h.1.attn.bias" in refusal(tmp_path)


def test_a_mask_of_another_window(tmp_path: Path) -> None:
    """GPT-Neo has masks with and without a window; a layer with the other's is not the model of the config."""
    torch.manual_seed(0)
    config = t.GPTNeoConfig(
        vocab_size=384, hidden_size=32, num_layers=2, num_heads=4, window_size=8, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    t.GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    state = state_of(tmp_path)
    whole = torch.ones(64, 64).tril()[None, None].to(torch.uint8)
    masks = {
        "transformer.h.0.attn.attention.bias": whole,
        "transformer.h.1.attn.attention.bias": whole - whole.tril(-8),
    }
    write_safetensors(tmp_path, {**state, **masks})
    (left,) = load(str(tmp_path), device="cpu").left_out
    assert left.count == 2
    write_safetensors(tmp_path, {**state, **masks, "transformer.h.1.attn.attention.bias": whole})
    assert "does not use: transformer.h.1.attn.attention.bias" in refusal(tmp_path)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_layer_that_a_class_leaves_out_by_its_number(tmp_path: Path, ahead: bool) -> None:
    """DeepseekV3 wants to hear of no layer 61: that is one for the token after next, unless it is one more."""
    torch.manual_seed(0)
    config = t.DeepseekV3Config(
        vocab_size=384, hidden_size=8, intermediate_size=8, num_hidden_layers=61, num_attention_heads=1,
        num_key_value_heads=1, q_lora_rank=4, kv_lora_rank=4, qk_rope_head_dim=2, qk_nope_head_dim=2, v_head_dim=2,
        first_k_dense_replace=61, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    t.DeepseekV3ForCausalLM(config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    state = state_of(tmp_path)
    for name in [name for name in state if name.startswith("model.layers.60.")]:
        state[name.replace(".60.", ".61.")] = state[name].clone()
    if ahead:
        state |= {f"model.layers.61.{mark}.weight": torch.ones(8) for mark in ("enorm", "hnorm", "eh_proj")}
    write_safetensors(tmp_path, state)
    if ahead:
        reasons = {left.reason for left in load(str(tmp_path), device="cpu").left_out}
        assert reasons == {"a head for several tokens ahead"}
    else:
        assert "its config has 61 layers, and the checkpoint a layer 61" in refusal(tmp_path)


def test_part_of_a_tower_that_is_there(tmp_path: Path) -> None:
    """Only a whole tower is one that a text never enters; a model that has it must have all of it."""
    text = {
        "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    model = t.Gemma3ForConditionalGeneration(t.Gemma3Config(text_config=text, vision_config=vision))
    model.save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu").left_out == ()
    state = state_of(tmp_path)
    name = next(name for name in state if "vision" in name and "layers.0." in name and name.endswith("q_proj.weight"))
    extra = name.replace("q_proj", "g_proj")
    write_safetensors(tmp_path, {**state, extra: state[name].clone()})
    assert "g_proj" in refusal(tmp_path)


def test_the_text_part_of_a_model_with_towers(tmp_path: Path) -> None:
    """Llama 4 is published as a whole; its text model is what a text needs, and knows which tokens are images."""
    text = {
        "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    config = t.Llama4Config(text_config=text, vision_config=vision, image_token_index=9)
    whole = t.Llama4ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path), device="cpu")
    with torch.no_grad():
        ids = IDS[IDS != 9][None]
        assert torch.allclose(loaded.model(ids).logits, whole(ids).logits, atol=1e-5)
    assert {left.tensors for left in loaded.left_out} == {"vision_model.*", "multi_modal_projector.*"}
    with pytest.raises(InputError, match="image_token_index"):
        refuse_placeholders(loaded.model, loaded.tokenizer, [1, 9])


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt2", "mixtral", "falcon_h1"])
def test_a_class_is_loaded_as_it_was_saved_and_not_with_more(tmp_path: Path, kind: str) -> None:
    """Experts are put together while they are loaded, so their names are not those of the file."""
    assert unused_refused(build(kind), byte_tokenizer(), tmp_path) == "yes"


# On request


def test_weights_that_are_ignored_on_request(folder: Path) -> None:
    biases = {f"model.layers.{layer}.mlp.up_proj.bias": torch.ones(HIDDEN) for layer in range(LAYERS)}
    assert accepted(folder, biases, ignore_weights=["*.up_proj.bias"]) == {
        "model.layers.*.mlp.up_proj.bias": (LAYERS, "ignored on request: *.up_proj.bias")
    }


def test_a_pattern_that_matches_nothing(folder: Path) -> None:
    said = refusal(folder, InputError, ignore_weights=["*.up_proj.bias"])
    assert "ignore_weights *.up_proj.bias matches no tensor that" in said
    used = refusal(folder, InputError, ignore_weights=["*.up_proj.weight"])
    assert "it leaves out none" in used
    write_safetensors(folder, {**state_of(folder), "model.layers.0.mlp.up_proj.bias": torch.ones(HIDDEN)})
    assert "does not use" in refusal(folder, ignore_weights=["*.down_proj.bias"])


def test_what_was_left_out_is_in_the_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(folder)
    added = {"model.layers.1.mlp.up_proj.bias": torch.ones(HIDDEN), "score.weight": torch.ones(2, WIDTH)}
    write_safetensors(folder, {**state, **added})
    store = tmp_path / "run.zarr"
    arguments = ["-m", folder, "--raw", "-p", "Alice", "-n", "2", "--device", "cpu", "-o", store, "--quiet"]
    monkeypatch.setattr(sys, "argv", ["lens", "capture", *map(str, arguments), "--ignore-weights", "*up_proj.bias"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    about = json.loads((store / "0000" / "zarr.json").read_text())["attributes"]["attnlens"]["model"]
    assert about["left_out"] == [
        {"tensors": "model.layers.*.mlp.up_proj.bias", "count": 1, "reason": "ignored on request: *up_proj.bias"},
        {"tensors": "score.weight", "count": 1, "reason": "a head for something else than the next token"},
    ]


# Meta's layout


def rewrite(folder: Path, **added: torch.Tensor) -> None:
    path = folder / "consolidated.00.pth"
    torch.save({**torch.load(path), **added}, path)


@pytest.mark.parametrize("scaled", [False, True])
def test_metas_frequencies(tmp_path: Path, scaled: bool) -> None:
    params, state = write_meta(tmp_path, {"rope_theta": 500000.0, "use_scaled_rope": scaled})
    frequencies = 500000.0 ** -(torch.arange(0, 8, 2) / 8)
    rewrite(tmp_path, **{"rope.freqs": frequencies.bfloat16()})
    loaded = load(str(tmp_path), device="cpu")
    ((name, count, reason),) = [(left.tensors, left.count, left.reason) for left in loaded.left_out]
    assert (name, count, reason) == ("rope.freqs", 1, "rotary frequencies, as the model computes them")
    expected = meta_logits({**META, **params}, state, IDS[0].tolist())
    assert torch.allclose(logits(loaded.model)[0].double(), expected, atol=1e-3)
    rewrite(tmp_path, **{"rope.freqs": 10000.0 ** -(torch.arange(0, 8, 2) / 8)})
    assert "rope.freqs holds other frequencies than params.json gives (rope_theta 500000)" in refusal(tmp_path)
    assert load(str(tmp_path), device="cpu", ignore_weights=["rope.*"]).left_out[0].reason.endswith("rope.*")


def test_metas_unknown_tensors(tmp_path: Path) -> None:
    write_meta(tmp_path)
    rewrite(tmp_path, **{"layers.0.attention.wq.bias": torch.ones(32)})
    said = refusal(tmp_path)
    assert re.search(r"holds unknown tensors layers\.0\.attention\.wq\.bias.*ignore_weights", said)
    (left,) = load(str(tmp_path), device="cpu", ignore_weights=["*.bias"]).left_out
    assert (left.tensors, left.count) == ("layers.*.attention.wq.bias", 1)
    assert "matches no tensor" in refusal(tmp_path, InputError, ignore_weights=["*.bias", "*.scale"])
