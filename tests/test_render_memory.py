"""Memory of a drawing run, all of its processes together, must not depend on how large the store is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import render_store
from attnlens.store.writer import StoreWriter

LIMIT = 300 << 20


def large(path: Path, *, n_layer: int, n_head: int, n_token: int, rows: int) -> None:
    """A store as a large model with a long context leaves it, of which the last `rows` rows are really there."""
    words = render_store.WORDS
    writer = StoreWriter.create(path)
    about = render_store._metadata(writer.new_id(), n_token - rows, n_layer, n_head, (), True, n_token, len(words))
    ids = [position % len(words) for position in range(n_token)]
    texts = [words[number] for number in ids]
    with writer.capture(about, capacity=n_token) as capture:
        capture.tokens(ids, texts, [text.encode() for text in texts], [number == 0 for number in ids])
        capture.fail("rows are put there by hand")
    group = zarr.open_group(path / about.id, mode="r+", use_consolidated=False)
    arrays = dict(group.arrays())
    for name, entries in (("vocabulary_id", np.arange(len(words))), ("vocabulary_text", np.array(words, object))):
        arrays[name].resize((len(words),))
        arrays[name][:] = entries
    spelled = b"".join(text.encode() for text in texts)
    offsets = np.cumsum([0, *(len(text.encode()) for text in texts)])
    arrays["token_bytes"].resize((len(spelled),))
    for name, values in (
        ("token_id", np.array(ids)),
        ("token_special", np.array(ids) == 0),
        ("token_bytes", np.frombuffer(spelled, np.uint8)),
        ("token_byte_offset", offsets),
    ):
        arrays[name][: len(values)] = values
    arrays["token_text"][:n_token] = np.array(texts, object)
    row = np.zeros((1, n_head, rows, n_token), np.float16)
    row[..., ::7] = np.random.default_rng(0).random(row[..., ::7].shape) / 8
    for layer in range(n_layer):
        arrays["attention_weight"][layer : layer + 1, :, n_token - rows :, :] = row
    for name in ("attention_max", "attention_mean"):
        arrays[name][1 : 1 + rows] = np.broadcast_to(row[0].max(0)[:, None], (rows, n_layer, n_token))
    for name, value in (("lens_token", 1), ("lens_probability", 0.5)):
        arrays[name][:, -1024:] = value
    document = path / about.id / "zarr.json"
    text = json.loads(document.read_text())
    text.pop("consolidated_metadata", None)
    text["attributes"]["attnlens"].update(status="partial", committed=n_token, n_fed=n_token, n_token=n_token)
    document.write_text(json.dumps(text))


def peak(command: list[str]) -> int:
    """Most bytes that a command and all its processes held at once; pages that they share are counted once."""
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        while run.poll() is None:
            most = max(most, sum(held(process) for process in family(run.pid)))
            time.sleep(0.02)
        assert run.stderr is not None
        assert run.returncode == 0, run.stderr.read()
    return most


def family(process: int) -> list[int]:
    """A process and what it started, and so on."""
    found = [process]
    for one in found:
        try:
            listed = Path(f"/proc/{one}/task/{one}/children").read_text()
        except OSError:  # it has just ended
            continue
        found += [int(child) for child in listed.split()]
    return found


def held(process: int) -> int:
    """Bytes of a process, its share of what it shares."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="shared pages are counted by Linux only")
@pytest.mark.parametrize("options", [["--heads", "max"], ["--heads", "median", "--scale", "drop-sink"]])
def test_a_large_store_is_drawn_in_little_memory(options: list[str], tmp_path: Path, large_store: Path) -> None:
    some = ["--queries", "12286:", "--tokens", "11970:", "--workers", "2", "--quiet", *options]
    used = peak([sys.executable, "-m", "attnlens", "render", str(large_store), "-o", str(tmp_path), *some])
    assert len(list(tmp_path.glob("*.png"))) > 100
    assert used < LIMIT, f"{used >> 20} MiB"


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 layers × 64 heads × 12288 tokens: one row of attention is 126 MB, all of it would be 1.5 TB."""
    path = tmp_path_factory.mktemp("large") / "run.zarr"
    large(path, n_layer=80, n_head=64, n_token=12288, rows=2)
    return path
