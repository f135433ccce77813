"""Float32 products in full while a capture runs, whatever the program around has set, and the settings put back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from attnlens.capture import capture
from families import byte_tokenizer, tiny_model

OLDER_SETTINGS = (
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
)
NEWER_SETTINGS = (
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'tf32'",
)
NEWER = hasattr(torch.backends, "fp32_precision")
"""torch 2.9 and later have a second way to set it."""
# torch 2.13 made as 2.6 is.
WITHOUT_NEWER = """
import torch

def refuse(self, name, found=type(torch.backends.cuda.matmul).__getattr__):
    if name == "fp32_precision":
        raise AttributeError("Unknown attribute " + name)
    return found(self, name)

if hasattr(torch.backends.mkldnn, "matmul"):
    del type(torch.backends.mkldnn).matmul
type(torch.backends.cuda.matmul).__getattr__ = refuse
"""
# A process for each: torch never forgets that its newer settings were used.
SCRIPT = """
import os, sys, torch
from attnlens.capture.precision import full_precision

def asked():
    found = []
    if hasattr(torch.backends.mkldnn, "matmul"):
        found = [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
    for ask in (torch.get_float32_matmul_precision, lambda: torch.backends.cuda.matmul.allow_tf32):
        try:
            found.append(ask())
        except RuntimeError:
            found.append("not to be asked")
    return found

def check(setting):
    exec(setting)
    before = asked()
    try:
        with full_precision():
            assert not {"tf32", "bf16"} & set(asked()[:-2]), asked()
            assert asked()[-2:] == ["highest", False], asked()
            raise KeyError
    except KeyError:
        pass
    assert asked() == before, (before, asked())
    print(setting, before)

for setting in sys.argv[1:]:
    child = os.fork()
    if not child:
        check(setting)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, setting
"""


def undone(script: str, settings: tuple[str, ...]) -> list[str]:
    """A line for each of `settings`: what could be asked once it was set, before full precision undid it."""
    done = subprocess.run([sys.executable, "-c", script, *settings], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line.split("[")[1] for line in done.stdout.splitlines()]
    assert len(said) == len(settings)
    return said


def test_products_are_full_and_settings_are_put_back() -> None:
    said = undone(SCRIPT, OLDER_SETTINGS + NEWER_SETTINGS * NEWER)
    effect = "tf32" if NEWER else "True"
    assert sum(effect in line for line in said) == len(said) - 1  # they did what they were to undo


def test_products_are_full_with_a_torch_that_has_the_older_settings_only() -> None:
    said = undone(WITHOUT_NEWER + SCRIPT, OLDER_SETTINGS)
    assert said == ["'highest', False]", "'high', True]", "'medium', True]", "'high', True]"]


def test_a_capture_computes_in_full(tmp_path: Path) -> None:
    model, seen = tiny_model("llama"), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        capture(model, byte_tokenizer(), "The quick", tmp_path / "run.zarr", raw=True, max_new_tokens=2)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}
