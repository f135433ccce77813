"""What a store with very many captures costs whoever opens it or lists it, against the zarr.json of earlier writers.

    python benchmarks/lists.py                 100,000 captures
    python benchmarks/lists.py --captures 10000

Only the store's own documents are written. Each command runs in its own process: CPU seconds, the ratio to the same
on a store of one capture, and the largest resident size. `inline`: all in the zarr.json, as earlier writers had it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attnlens
from attnlens.schemas.metadata import Batch, BatchPrompt, IndexEntry, StoreMetadata
from attnlens.store import lists
from attnlens.store.lists import beginning
from attnlens.store.root import new_root, write_root

TEXT = "Why is the sky blue, and why is it red in the evening? " * 8
OPEN = "import sys, attnlens; attnlens.open(sys.argv[1]).place"
IDS = "import sys, attnlens; len(attnlens.open(sys.argv[1]).ids)"
FIND = "import sys, attnlens; attnlens.open(sys.argv[1]).find('sky-' + sys.argv[2])"
APPEND = """
import sys
from pathlib import Path
from attnlens.store.root import indexed, read_root, write_root
from attnlens.store.places import Folder
path = Path(sys.argv[1])
write_root(path, indexed(path, read_root(Folder(path))), running=False)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", type=int, default=100_000)
    asked = parser.parse_args()
    print(f"attnlens {attnlens.__version__}, {asked.captures} captures")
    with tempfile.TemporaryDirectory() as folder:
        one = {what: cost(command)[0] for what, command in commands(written(Path(folder) / "one.zarr", 1))}
        for name, most in (("arrays", lists.INLINE_BYTES), ("inline", 1 << 40)):
            lists.INLINE_BYTES = most
            store, last = written(Path(folder) / f"{name}.zarr", asked.captures)
            total = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
            root = (store / "zarr.json").stat().st_size
            print(f"\n{name}: zarr.json {root / 2**20:.2f} MiB, with arrays {total / 2**20:.2f} MiB")
            for what, command in commands((store, last)):
                seconds, size = cost(command)
                print(f"  {what:<24} {seconds:6.2f} s, {seconds / one[what]:5.1f} ×, {size:6.0f} MiB")


def written(store: Path, count: int) -> tuple[Path, str]:
    """A store of so many captures, of which only the folders are there, and the name of the last one."""
    metadata = made_up(count)
    for capture in metadata.planned:
        (store / capture).mkdir(parents=True)
    write_root(store, metadata, running=False)
    return store, metadata.planned[-1]


def commands(where: tuple[Path, str]) -> list[tuple[str, list[str]]]:
    """What is measured, each with its name."""
    python, store = [sys.executable, "-c"], str(where[0])
    return [
        ("open", [*python, OPEN, store]),
        ("names of the captures", [*python, IDS, store]),
        ("one by its prompt's id", [*python, FIND, store, where[1]]),
        ("lens ls", [sys.executable, "-m", "attnlens", "ls", store]),
        ("index after one more", [*python, APPEND, store]),
    ]


def made_up(count: int) -> StoreMetadata:
    """The metadata of a store of one batch, every prompt of it complete."""
    names = [f"{number:04d}" for number in range(count)]
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    entries = [
        IndexEntry(
            id=name, prompt_id=f"sky-{name}", status="complete", n_prompt=90, n_token=120, digest=digests[name],
            prompt=beginning(f"{name} {TEXT}"), completion=beginning(f"{name} answer {TEXT}"), model="Qwen/Qwen3-0.6B",
        )
        for name in names
    ]  # fmt: skip
    prompts = [BatchPrompt(capture=name, prompt_id=f"sky-{name}", sha256=digests[name]) for name in names]
    batch = Batch(settings={"model": "Qwen/Qwen3-0.6B"}, prompts=prompts, run="run")
    return new_root().model_copy(update={"planned": names, "index": entries, "batches": [batch]})


def cost(command: Sequence[str]) -> tuple[float, float]:
    """CPU seconds and largest resident MiB of a command."""
    code = (
        "import json, resource, subprocess, sys\n"
        "subprocess.run(json.loads(sys.argv[1]), check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(command))], check=True, capture_output=True, env=environment
    )
    seconds, size = done.stdout.split()
    return float(seconds), float(size)


if __name__ == "__main__":
    main()
