"""Capture against plain `generate`: seconds, peak memory and bytes, each measured in a process of its own.

    python benchmarks/capture.py                      SmolLM2-135M, 256 and 2048 prompt tokens
    python benchmarks/capture.py --prompt 400 --new 100

Rows: `generate` is transformers' own with sdpa and nothing kept; `eager` is transformers with output_attentions and
output_hidden_states, which holds everything in memory and reads no lens; `dense` and `qk` are
`attnlens.capture` with weights and with queries and keys.
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

WAYS = ("generate", "eager", "dense", "qk")
TEXT = "In the beginning the machine said nothing, and people looked at its weights for a very long time. "


def measure(way: str, model_name: str, n_prompt: int, n_new: int) -> dict[str, Any]:
    """Runs one way in this process."""
    import torch

    from attnlens.capture.models import load
    from attnlens.progress import Silent

    loaded = load(model_name, dtype="float32", device="cpu", progress=Silent())
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = tokenizer(TEXT * (n_prompt // 15 + 1), add_special_tokens=False)["input_ids"][:n_prompt]
    model.generation_config.eos_token_id = None
    loaded_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stored = 0
    started = time.perf_counter()
    if way in ("dense", "qk"):
        from attnlens.capture import capture

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.zarr"
            report = capture(model, tokenizer, ids, path, max_new_tokens=n_new, temperature=0, attention=way)
            assert report.n_token == n_prompt + n_new
            seconds = time.perf_counter() - started
            stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    else:
        model.set_attn_implementation("sdpa" if way == "generate" else "eager")
        keep = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=n_new, do_sample=False, **(keep if way == "eager" else {})
            )
        del out
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"way": way, "seconds": seconds, "peak_mib": peak, "loaded_mib": loaded_mib, "stored_mib": stored / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", type=int, nargs="*", default=[256, 2048])
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.model, options.prompt[0], options.new)))
        return
    for n_prompt in options.prompt:
        print(f"{options.model}, {n_prompt} prompt + {options.new} new tokens")
        print(f"{'':10}{'seconds':>9}{'× generate':>12}{'peak MiB':>10}{'over it':>9}{'stored MiB':>12}")
        base: dict[str, Any] | None = None
        for way in options.ways:
            command = [sys.executable, "-W", "ignore", __file__, "--one", way, "--model", options.model]
            command += ["--prompt", str(n_prompt), "--new", str(options.new)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            base = base or row
            print(
                f"{way:10}{row['seconds']:9.1f}{row['seconds'] / base['seconds']:12.2f}{row['peak_mib']:10.0f}"
                f"{row['peak_mib'] - base['peak_mib']:+9.0f}{row['stored_mib']:12.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
