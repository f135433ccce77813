"""Holds GGUF files against llama.cpp itself, so that the writer and the reader cannot share a mistake.

    python -m attnlens.benchmarks.models.llamacpp                # tiny models of every architecture: logits
    python -m attnlens.benchmarks.models.llamacpp model.gguf …   # the tokenizers in files: ids of some texts

Needs `pip install llama-cpp-python`, which compiles llama.cpp and is part of no extra; the tests do not need it.
llama.cpp looks GELU up in a table of float16, so models that use it differ by some thousandths of their logits.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from attnlens.benchmarks.models.gguf_files import WRITERS, write_gguf
from attnlens.benchmarks.models.gguf_keys import NotWritableError
from attnlens.benchmarks.models.tiny_configs import tiny_config
from attnlens.benchmarks.models.tiny_tokenizer import byte_tokenizer

IDS = [3 + 37 * index % 256 for index in range(40)]
SECTIONS = {
    "rope_type": "default",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.5,
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8},  # llama.cpp knows the scale of Google's own models only
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gemma4_text": {"global_head_dim": 16, "final_logit_softcapping": 4.0},  # without the key llama.cpp takes 30
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 1500.0}},
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "mistral": {"sliding_window": None},  # which llama.cpp does not apply
    "mixtral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "starcoder2": {"sliding_window": None},
    "qwen3_5_text": {"head_dim": 16, "rope_parameters": SECTIONS},
    "qwen3_5_moe_text": {"head_dim": 16, "rope_parameters": SECTIONS},
    "qwen3_moe": {"norm_topk_prob": True},  # as llama.cpp takes for granted
}
TEXTS = (
    "Alice and Bob are siblings. Who is Bob's sister?",
    "1234 x  été\n\n今日は 🙂",
    " leading  spaces\t\ttab\r\nnew",
    "we're I'LL he'D don't HelloWorld ABCdef XMLHttp",
    "100,000.50 $5+3=8 <a> ^~| `code`",
    "  \n  \n\n  x",
    "",
    "   ",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "Где сестра Боба? مرحبا بالعالم، كيف؟ 한국어 日本語テスト。「」",
)


def model_of(kind: str) -> Any:
    """A random model of the type, its attention far from flat."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = tiny_config(kind, **CHANGES.get(kind, {}))
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape)
            value.copy_(noise * 0.35 if value.dim() > 1 else value + noise * 0.2)
    return model


def distance(kind: str, folder: Path) -> float:
    """Largest difference of logits, in standard deviations of them."""
    import torch

    model, path = model_of(kind), folder / f"{kind}.gguf"
    write_gguf(path, model, byte_tokenizer())
    cache = {"type_k": 0, "type_v": 0, "flash_attn": False}  # keys and values in float32
    llama = import_module("llama_cpp").Llama(str(path), logits_all=True, n_ctx=64, n_threads=1, verbose=False, **cache)
    llama.eval(IDS)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    return float(np.abs(np.array(llama.scores[: len(IDS)]) - expected).max() / expected.std())


def tokens_differ(path: Path) -> list[str]:
    """Texts that llama.cpp and the tokenizer that we read from the file take for different ids."""
    from attnlens.capture.models.gguf import read_header
    from attnlens.capture.models.gguf.tokenizer import read_tokenizer

    llama = import_module("llama_cpp").Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = read_tokenizer(read_header(path))
    return [
        text
        for text in TEXTS
        if tokenizer(text)["input_ids"] != llama.tokenize(text.encode(), add_bos=True, special=True)
    ]


def main(files: list[str]) -> int:
    """Prints what was found; 1 if something differs."""
    wrong = 0
    for file in files:
        texts = tokens_differ(Path(file))
        wrong += len(texts)
        print(f"{file}: {len(TEXTS) - len(texts)} of {len(TEXTS)} texts alike", *map(repr, texts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind in () if files else WRITERS:
            try:
                found = distance(kind, Path(folder))
            except NotWritableError as error:
                print(f"{kind}: not written: {error}", flush=True)
                continue
            wrong += found > 1e-2
            print(f"{kind}: {found:.1e}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
