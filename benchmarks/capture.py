"""Capture against plain `generate`, and against how it was done before: each measured in a process of its own.

    python benchmarks/capture.py                          SmolLM2-135M, float32: 256, 1024 and 4096 prompt tokens
    python benchmarks/capture.py --prompt 300 --new 100   the one of docs/performance.md
    python benchmarks/capture.py --ways generate floor dense --rounds 3
    python benchmarks/capture.py --model llama-8b --prompt 2048 --new 128                 on a GPU, bfloat16
    python benchmarks/capture.py --model llama-8b --prompt 2048 --new 128 --quantize 8bit

Rows: `generate` is transformers' own with sdpa and nothing kept; `before` is transformers with output_attentions and
output_hidden_states, everything held in memory, then norm, unembedding, softmax and first choice of every layer and
token, as the script did that attnlens came from; `floor` is `generate`, then nothing but the product of the residuals
of every depth and token with the unembedding, 64 tokens at a time; `dense` and `qk` are `attnlens.capture` in its two
modes. llama-8b is Llama-3.1-8B's shape with random weights. What would not fit the memory that is free is left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("generate", "before", "floor", "dense", "qk")
TEXT = "In the beginning the machine said nothing, and people looked at its weights for a very long time. "
TOKENS = 64
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}  # fmt: skip


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its tokenizer; SmolLM2's tokenizer for the random one."""
    import torch

    from attnlens.capture.models import load
    from attnlens.progress import Silent

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = options.dtype or ("float32" if device == "cpu" else "bfloat16")
    if options.model != "llama-8b":
        loaded = load(options.model, dtype=dtype, device=device, quantize=options.quantize, progress=Silent())
        return loaded.model, loaded.tokenizer
    import transformers

    small = load("smollm2-135m", dtype="float32", device="cpu", progress=Silent())
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, dtype))
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_8B)).eval()
        torch.set_default_dtype(torch.float32)
    if options.quantize is None:
        return model, small.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        small.tokenizer.save_pretrained(folder)
        del model
        loaded = load(folder, dtype=dtype, device=device, quantize=options.quantize, progress=Silent())
        return loaded.model, small.tokenizer


def generate(model: Any, ids: Any, n_new: int, implementation: str, **keep: bool) -> Any:
    """transformers' own, greedy."""
    model.set_attn_implementation(implementation)
    return model.generate(ids, max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, **keep)


def read_as_before(model: Any, output: Any) -> None:
    """The first choice of every layer and token, by whole distributions, layer after layer."""
    import torch

    for step in output.hidden_states:
        for hidden in step:
            torch.softmax(model.lm_head(model.model.norm(hidden)), dim=-1).max(dim=-1)


def product(model: Any, n_token: int) -> None:
    """What a lens cannot do without: residuals of every depth and token times the unembedding."""
    import torch

    weight = model.get_output_embeddings().weight
    rows = TOKENS * (model.config.num_hidden_layers + 1)
    dtype = weight.dtype if weight.is_floating_point() else torch.float16
    residual = torch.randn(rows, weight.shape[1], device=weight.device).to(dtype)
    height = rows if weight.device.type == "cpu" else 512
    logits = torch.empty(height, weight.shape[0], device=weight.device, dtype=dtype)
    for first in range(0, n_token, TOKENS):
        count = rows * min(TOKENS, n_token - first) // TOKENS
        for row in range(0, count, height):
            part = residual[row : min(count, row + height)]
            torch.mm(part, weight.T.to(dtype), out=logits[: len(part)])


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one way in this process."""
    import torch

    n_prompt, n_new = options.prompt[0], options.new
    model, tokenizer = load_model(options)
    ids = tokenizer(TEXT * (n_prompt // 15 + 1), add_special_tokens=False)["input_ids"][:n_prompt]
    model.generation_config.eos_token_id = None
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    cuda = device.type == "cuda"
    if cuda:
        generate(model, prompt[:, :16], 2, "sdpa")
        torch.cuda.reset_peak_memory_stats()
    stored = 0
    started = time.perf_counter()
    with torch.no_grad():
        if way in ("generate", "floor"):
            generate(model, prompt, n_new, "sdpa")
        elif way == "before":
            keep = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
            read_as_before(model, generate(model, prompt, n_new, "eager", **keep))
        if way == "floor":
            product(model, n_prompt + n_new - 1)
    timings: dict[str, float] = {}
    if way in ("dense", "qk"):
        from attnlens.capture import capture

        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "run.zarr"
            report = capture(model, tokenizer, ids, path, max_new_tokens=n_new, temperature=0, attention=way)
            seconds = time.perf_counter() - started
            assert report.n_token == n_prompt + n_new
            stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            timings = json.loads((path / "0000/zarr.json").read_bytes())["attributes"]["attnlens"]["timings"]
    else:
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else 0,
        "stored_mib": stored / 2**20,
        "timings": timings,
    }


def too_large(way: str, n_prompt: int, n_new: int) -> str | None:
    """Why SmolLM2's whole evidence would not fit: `before` holds float32 attention and a layer's logits."""
    if way != "before":
        return None
    need = 4 * (30 * 9 * (n_prompt**2 + n_new * (n_prompt + n_new)) + 3 * n_prompt * 49152) + 2**30
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    return f"needs {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free" if free is not None and need > free else None


def run(way: str, n_prompt: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one way in a process of its own; the fastest of some rounds."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", way, "--model", options.model]
    command += ["--prompt", str(n_prompt), "--new", str(options.new), "--folder", options.folder]
    for name in ("dtype", "device", "quantize"):
        command += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    rounds = []
    for _ in range(options.rounds):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["killed: out of memory?"])[-1]}
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    return min(rounds, key=lambda row: float(row["seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1, help="of each way; the fastest is shown")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--dtype", help="default: float32 on a processor, bfloat16 on a GPU")
    parser.add_argument("--device")
    parser.add_argument("--quantize", choices=("8bit", "4bit"))
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where stores are written, and removed again")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    for n_prompt in options.prompt:
        print(f"{options.model}, {n_prompt} prompt + {options.new} new tokens")
        print(f"{'':10}{'seconds':>9}{'× generate':>12}{'× floor':>9}{'peak MiB':>10}{'over it':>9}"
              f"{'device MiB':>12}{'stored MiB':>12}")  # fmt: skip
        rows: dict[str, dict[str, Any]] = {}
        for way in options.ways:
            reason = too_large(way, n_prompt, options.new) if options.model == "smollm2-135m" else None
            row: dict[str, Any] = {"failed": reason} if reason else run(way, n_prompt, options)
            if "failed" in row:
                print(f"{way:10} left out: {row['failed']}", flush=True)
                continue
            rows[way] = row
            base, floor = rows.get("generate", row), rows.get("floor")
            ratio = f"{row['seconds'] / floor['seconds']:9.2f}" if floor else f"{'':9}"
            print(
                f"{way:10}{row['seconds']:9.1f}{row['seconds'] / base['seconds']:12.2f}{ratio}{row['peak_mib']:10.0f}"
                f"{row['peak_mib'] - base['peak_mib']:+9.0f}{row['device_mib']:12.0f}{row['stored_mib']:12.1f}"
                f"  {' '.join(f'{name} {value}' for name, value in row['timings'].items())}",
                flush=True,
            )


if __name__ == "__main__":
    main()
