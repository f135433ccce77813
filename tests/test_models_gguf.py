"""GGUF files: the values that went in come out, and damaged files are said to be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from attnlens.capture import capture
from attnlens.capture.forecast.forecast import forecast
from attnlens.capture.models import load
from attnlens.capture.run import CaptureOptions
from attnlens.progress import Silent
from attnlens.schemas.errors import InputError, ModelError
from tiny import TEMPLATE, byte_level_tokenizer, llama

gguf = pytest.importorskip("gguf")
IDS = torch.tensor([[1, 5, 9, 200, 31, 7]])
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def ggml_order(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp keeps Meta's order of the rotary rows."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, *, quantized: str | None = None) -> Any:
    """A tiny Llama with a byte-level tokenizer; returns the model."""
    model, tokenizer = llama(hidden_size=64, intermediate_size=96), byte_level_tokenizer(TEMPLATE)
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    pieces += [f"[PAD{i}]" for i in range(len(pieces), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(pieces))])
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        value = tensor.float().numpy()
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            if "q_proj" in rest or "k_proj" in rest:
                value = ggml_order(value, 4 if "q_proj" in rest else 2)
            target = f"blk.{index}.{NAMES[rest.removesuffix('.weight')]}.weight"
        else:
            target = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                name.removesuffix(".weight")
            ] + ".weight"
        if quantized and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType[quantized]
            writer.add_tensor(target, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def test_a_file_and_its_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = write_gguf(tmp_path / "tiny.gguf")
    for name in (tmp_path / "tiny.gguf", tmp_path):
        loaded = load(str(name), device="cpu")
        torch.testing.assert_close(logits(loaded.model), logits(original), atol=1e-5, rtol=0)
        assert loaded.id == "tiny.gguf"
        assert loaded.quantization == {"source": {"format": "gguf", "types": {"F32": 30}, "dequantized_to": "float32"}}
        assert not hasattr(loaded.model.config, "quantization_config")
        assert str(tmp_path) not in str(loaded.model.config.to_dict())
        assert loaded.tokenizer("Alice")["input_ids"][-1] == byte_level_tokenizer()("Alice")["input_ids"][-1]
        assert loaded.tokenizer.chat_template == TEMPLATE
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("quantized", "dtype"), [("Q8_0", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_types_and_dtypes(tmp_path: Path, quantized: str, dtype: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantized=quantized)
    loaded = load(str(tmp_path), device="cpu")
    assert loaded.model.dtype == getattr(torch, dtype)
    assert loaded.quantization is not None
    assert loaded.quantization["source"]["types"][quantized] == 23
    assert load(str(tmp_path), device="cpu", dtype="float32").model.dtype == torch.float32


def test_quantized_again(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    original = write_gguf(tmp_path / "tiny.gguf")
    loaded = load(str(tmp_path), device="cpu", quantize="8bit")
    assert loaded.quantization is not None
    assert (loaded.quantization["bits"], loaded.quantization["source"]["format"]) == (8, "gguf")
    error = (logits(loaded.model) - logits(original)).std() / logits(original).std()
    assert 0 < error < 0.1


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 100, 3000, 0.3, 0.9, 0.999])
def test_cut_short(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 or keep == 0 else keep * len(whole))])
    with pytest.raises(ModelError, match=r"tiny\.gguf is (damaged or cut short|not a GGUF file)"):
        load(str(path), device="cpu")


def test_which_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"holds 2 GGUF files, give one of them: a\.gguf, b\.gguf"):
        load(str(tmp_path))
    with pytest.raises(InputError, match="a GGUF file has no revisions"):
        load(str(tmp_path / "a.gguf"), revision="main")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is one part of a split GGUF file"):
        load(str(tmp_path / "m-00001-of-00002.gguf"))


@pytest.mark.parametrize(("quantized", "dtype"), [(None, "float32"), ("Q8_0", "float32"), ("F16", "float16")])
def test_a_plan_is_that_of_the_loaded_model(tmp_path: Path, quantized: str | None, dtype: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantized=quantized)
    options = CaptureOptions(
        model=str(tmp_path / "tiny.gguf"), prompt="Hi", completion="a b c", output=tmp_path / "x.zarr", device="cpu"
    )
    found = forecast(options, Silent())
    loaded = load(options.model, device="cpu")
    report = capture(loaded.model, loaded.tokenizer, "Hi", tmp_path / "run.zarr", completion="a b c")
    assert (found.model, found.dtype, found.n_prompt) == ("tiny.gguf", dtype, report.n_prompt)
    assert found.n_parameters == sum(weight.numel() for weight in loaded.model.parameters())
    held = sum(weight.nbytes for weight in (*loaded.model.parameters(), *loaded.model.buffers()))
    assert found.memory["host"]["weights"] == held
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["0000"]
    shapes = {name: array.shape for name, array in group.arrays()}
    arrays = {array.name: tuple(array.axes.values()) for array in found.modes[0].arrays}
    for name in ("attention_weight", "attention_max", "lens_token", "value_norm", "token_id"):
        assert arrays[name] == shapes[name], name
    assert not (tmp_path / "x.zarr").exists()
