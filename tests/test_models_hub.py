"""Folders in Hugging Face's layout, hub names, and one line for each that cannot be captured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from attnlens.capture.models import load
from attnlens.schemas.errors import AttnlensError, InputError, MissingExtraError, ModelError
from tiny import byte_level_tokenizer, write_hf

IDS = torch.tensor([[1, 5, 9, 200, 31, 7]])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def test_a_local_folder(tmp_path: Path) -> None:
    original = write_hf(tmp_path / "tiny-llama", dtype="float32")
    loaded = load(f"{tmp_path}/tiny-llama/", device="cpu")
    assert (loaded.id, loaded.revision, loaded.quantization) == ("tiny-llama", None, None)
    with torch.no_grad():
        assert torch.allclose(loaded.model(IDS).logits, original(IDS).logits, atol=1e-6)
    assert loaded.model.config._attn_implementation == "eager"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.chat_template
    said = json.dumps(loaded.model.config.to_dict()) + loaded.tokenizer.name_or_path + loaded.model.name_or_path
    assert str(tmp_path) not in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    write_hf(tmp_path)
    assert load(str(tmp_path), device="cpu", dtype=dtype).model.dtype == getattr(torch, dtype)


def test_auto_dtype_is_the_checkpoints(tmp_path: Path) -> None:
    from tiny import llama

    llama().to(torch.bfloat16).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu").model.dtype == torch.bfloat16


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def damage(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "header":
        weights.write_bytes(b"\xff" * 100)
    elif what == "bin":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and no more")
    elif what == "shard":
        weights.rename(folder / "model-00001-of-00002.safetensors")
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    elif what == "index":
        weights.rename(folder / "x.safetensors")
        (folder / "model.safetensors.index.json").write_text("[]")
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "config":
        (folder / "config.json").write_text("{")
    elif what == "config list":
        (folder / "config.json").write_text("[]")
    elif what == "model type":
        edit(folder, model_type="strange")
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif what == "fewer weights":
        edit(folder, num_hidden_layers=4)
    elif what == "other shapes":
        edit(folder, hidden_size=64)
    elif what == "no head":
        edit(folder, architectures=["LlamaModel"])
    elif what == "classifier":
        edit(folder, architectures=["LlamaForSequenceClassification"])
    elif what == "encoder":
        edit(folder, model_type="bert", architectures=["BertForMaskedLM"])
    elif what == "seq2seq":
        edit(folder, model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)
    elif what == "vision":
        edit(folder, model_type="vit", architectures=["ViTForImageClassification"])
    elif what == "remote code":
        edit(folder, model_type="strange", auto_map={"AutoConfig": "c.Config", "AutoModelForCausalLM": "c.Model"})


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no weights", "no weights in"),
        ("truncated", "model.safetensors is damaged or cut short"),
        ("header", "model.safetensors is damaged or cut short"),
        ("bin", "pytorch_model.bin is damaged or cut short"),
        ("shard", "1 of 2 weight files are missing"),
        ("index", "model.safetensors.index.json cannot be read"),
        ("no config", "no config.json, no params.json and no .gguf file"),
        ("config", "config.json cannot be read"),
        ("config list", "holds list, expected a JSON object"),
        ("model type", "model type 'strange' is not known to transformers"),
        ("no tokenizer", "no tokenizer in"),
        ("tokenizer", "cannot be loaded"),
        ("fewer weights", "has no weights for model.layers.3"),
        ("other shapes", "does not fit its config"),
        ("no head", "is a LlamaModel, expected LlamaForCausalLM: it has no language-model head"),
        ("classifier", "is a LlamaForSequenceClassification"),
        ("encoder", "is a BertForMaskedLM"),
        ("seq2seq", "an encoder with a decoder"),
        ("vision", "is a ViTForImageClassification: not a causal language model"),
        ("remote code", "trust_remote_code=True"),
    ],
)
def test_one_line_for_each(tmp_path: Path, what: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    write_hf(tmp_path)
    damage(tmp_path, what)
    capfd.readouterr()  # what saving said
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path), device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a file: give the folder"):
        load(str(tmp_path / "model.safetensors"))
    for name in (f"{tmp_path}/none", "./none", "a/b/c", "~/no-such-folder-of-models"):
        with pytest.raises(ModelError, match="no such folder"):
            load(name)
    with pytest.raises(ModelError, match=r"no such file: .*none\.gguf"):
        load(f"{tmp_path}/none.gguf")
    with pytest.raises(InputError, match="name is empty"):
        load(" ")


@pytest.mark.usefixtures("offline")
def test_a_hub_name_offline() -> None:
    started = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        load("no-such-owner/no-such-model", device="cpu")
    assert "no folder no-such-owner/no-such-model, and the hub cannot be reached" in str(caught.value)
    assert time.perf_counter() - started < 10


@pytest.mark.usefixtures("offline")
def test_a_hub_model_in_the_cache_has_name_and_commit(tmp_path: Path) -> None:
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / "models--someone--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_hf(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = load("someone/tiny", device="cpu")
    assert (loaded.id, loaded.revision) == ("someone/tiny", commit)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8': expected one of auto, float32"),
        ({"quantize": "2bit"}, "unknown quantization '2bit'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "auto:1"}, "unknown device 'auto:1'"),
        ({"revision": "main"}, "a local folder has no revisions"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    write_hf(tmp_path)
    with pytest.raises(InputError) as caught:
        load(str(tmp_path), **options)
    assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_but_none(tmp_path: Path) -> None:
    write_hf(tmp_path)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(InputError, match=f"device '{device}' was asked for, but torch .* finds no cuda device"):
            load(str(tmp_path), device=device)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_on_the_gpu(tmp_path: Path, device: str, quantize: Any) -> None:
    write_hf(tmp_path, hidden_size=64, intermediate_size=128)
    loaded = load(str(tmp_path), device=device, quantize=quantize)
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"cuda"}
    assert torch.isfinite(loaded.model(IDS.cuda()).logits).all()
    with pytest.raises(InputError, match="only"):
        load(str(tmp_path), device="cuda:99")


# Quantized


@pytest.mark.parametrize(("quantize", "limit"), [("8bit", 0.1), ("4bit", 0.5)])
def test_quantized_on_the_cpu(tmp_path: Path, quantize: Any, limit: float, capfd: pytest.CaptureFixture[str]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    original = write_hf(tmp_path)  # layers of 16 and 48 rows, which bitsandbytes' own packing for CPUs refuses
    capfd.readouterr()
    loaded = load(str(tmp_path), device="cpu", quantize=quantize)
    about = loaded.quantization
    assert about is not None
    assert about["method"] == "bitsandbytes"
    assert about["version"] == bitsandbytes.__version__
    assert (about["bits"], about["quantized_modules"], about["kept_modules"]) == (int(quantize[0]), 21, ["lm_head"])
    assert about["compute_dtype"] == {"8bit": "float16", "4bit": "float32"}[quantize]
    with torch.no_grad():
        expected, first, second = original(IDS).logits, loaded.model(IDS).logits, loaded.model(IDS).logits
    assert torch.equal(first, second)
    assert 0 < (first - expected).std() / expected.std() < limit
    assert capfd.readouterr() == ("", "")


def test_quantize_without_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnlens.capture import extra

    write_hf(tmp_path)
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(
        MissingExtraError, match=r"--quantize 4bit needs bitsandbytes.*pip install 'attnlens\[capture\]'"
    ):
        load(str(tmp_path), quantize="4bit")


def test_quantized_already(tmp_path: Path) -> None:
    write_hf(tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelError, match=r"is quantized already \(fp8\)"):
        load(str(tmp_path), device="cpu", quantize="8bit")


def test_a_saved_quantized_checkpoint_says_so(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_hf(tmp_path / "a", hidden_size=64, intermediate_size=128)
    first = load(str(tmp_path / "a"), device="cpu", quantize="4bit")
    first.model.save_pretrained(tmp_path / "b")
    first.tokenizer.save_pretrained(tmp_path / "b")
    again = load(str(tmp_path / "b"), device="cpu")
    assert again.quantization is not None
    assert again.quantization["method"] == "bitsandbytes"
    assert again.quantization["in_checkpoint"] is True
    with torch.no_grad():
        np.testing.assert_allclose(again.model(IDS).logits, first.model(IDS).logits, atol=1e-5)


# Without the extra, without noise


def test_without_the_extra() -> None:
    code = (
        "import sys\n"
        "import attnlens.capture.extra as extra\n"
        "find = extra.find_spec\n"
        "extra.find_spec = lambda name: None if name in ('torch', 'transformers') else find(name)\n"
        "try: extra.require_capture_extra()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, imported = done.stdout.splitlines()
    assert said.startswith("MissingExtraError capturing needs torch, transformers, which are not installed: pip ")
    assert imported == "False"


def test_files_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    write_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    code = (
        "import sys, attnlens.capture.models as m\n"
        f"try: m.load({str(tmp_path)!r})\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ModelError", "False"]


def test_a_fresh_process_says_nothing(tmp_path: Path) -> None:
    write_hf(tmp_path)
    code = f"from attnlens.capture.models import load; load({str(tmp_path)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_verbosity_is_as_before(tmp_path: Path) -> None:
    import logging

    from tqdm.std import tqdm

    write_hf(tmp_path)
    logger, start = logging.getLogger("transformers"), tqdm.__init__
    level = logger.level
    load(str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AttnlensError):
        load(str(tmp_path), device="cpu")
    assert (logger.level, tqdm.__init__) == (level, start)


class Recorder:
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        self.said.append(name)

    def advance(self, amount: int = 1, note: str = "") -> None:
        pass

    def end(self) -> None:
        self.said.append("end")


def test_progress_ends_also_when_loading_fails(tmp_path: Path) -> None:
    write_hf(tmp_path)
    good, bad = Recorder(), Recorder()
    load(str(tmp_path), device="cpu", progress=good)
    save_file({"model.norm.weight": np.zeros(32, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError):
        load(str(tmp_path), device="cpu", progress=bad)
    assert good.said == bad.said == ["loading", "end"]
