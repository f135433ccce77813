"""Stores damaged with intent: a stranger's JSON and chunks, sealed again where a reader would notice otherwise.

    python tests/fuzz_store.py FIRST COUNT

Each number is one store, the same each time. Commands work or say one line; all else is printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path
from typing import Any

SECONDS, WALL = 10, 90
LEAVES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 70, 0.5, -0.0, 1e308, "", "0",
    "token", "\x1b[31m", "\u202e", "[/bold]", "../x", "x" * 5000, "\ud800", [], {}, [1], {"a": 1}, [[]] * 50, "full",
    "none", "dense", "qk", "complete", "partial", "planned", "failed", "float16", "uint8", "string", "int32",
    "bfloat16", "layer", "query",
)  # fmt: skip


def make(folder: Path) -> Path:
    """The store that everything is made of: two captures, one of them broken off."""
    from attnlens.store.writer import StoreWriter
    from store_sample import Sample

    path = folder / "run.zarr"
    writer = StoreWriter.create(path)
    Sample(n_prompt=12, n_generated=4, n_layer=3, sliding={1: 4}).write(writer)
    other = Sample(n_prompt=6, n_generated=5, name=writer.new_id(), seed=2)
    with writer.capture(other.metadata(), capacity=14) as out:
        other.prompt(out)
        other.step(out, 6)
        out.fail("stopped")
    return path


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += leaves(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            found += leaves(item, (*path, number))
    return found


def change(document: Any, chance: random.Random) -> None:
    """One change somewhere in a JSON document."""
    found = leaves(document)
    if not found:  # earlier changes left nothing of it
        return
    path = chance.choice(found)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    kind = chance.random()
    if kind < 0.15:
        del parent[path[-1]]
    elif kind < 0.25 and isinstance(parent, list):
        parent.extend(parent[:50] * chance.choice((1, 3, 100)))
    elif kind < 0.35 and isinstance(parent, dict):
        parent[chance.choice(("", "x", "token", "../x", "\x1b[0m", "attnlens"))] = parent[path[-1]]
    elif isinstance(parent[path[-1]], int) and kind < 0.7:
        parent[path[-1]] = parent[path[-1]] + chance.choice((-1, 1, 2, -2, 100, 1 << 20, -(1 << 20)))
    else:
        parent[path[-1]] = chance.choice(LEAVES)


def chunk(data: bytes, chance: random.Random, value: Any) -> bytes:
    """Another chunk of numbers or strings in place of one that is not in a shard."""
    from attnlens.store.encode import checksum, encode_numbers, encode_texts

    kind = chance.randrange(6)
    if kind == 0:
        return data[: chance.randrange(len(data) + 1)]
    if kind == 1:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
    if kind == 2:
        at = chance.randrange(max(1, len(data) - 4))
        body = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 : -4]
        return body + checksum(body)
    if kind == 3:
        import numpy as np

        return encode_numbers(np.zeros(chance.choice((1, 1 << 16, 1 << 24)), np.uint8))
    if kind == 4:
        return encode_texts(["\x1b[2J", "a" * 70000, "\u202e"] * chance.choice((1, 5000)))
    import numpy as np

    if value.dtype.kind in "OT":
        return encode_texts(
            [chance.choice(("", "\x1b]0;x\x07", "<b>", "$$", "\ufffd" * 3)) for _ in range(value.chunks[0])]
        )
    kinds: dict[str, list[Any]] = {
        "i": [-5, -1, 0, 3, 49, 50, 1 << 30],
        "f": [-1.0, 0.0, 0.5, 2.0, float("nan"), float("inf")],
    }
    options = kinds.get(value.dtype.kind, [0, 1, 200])
    values = np.array([chance.choice(options) for _ in range(int(np.prod(value.chunks)))]).astype(value.dtype)
    return encode_numbers(values.reshape(value.chunks))


def damage(path: Path, chance: random.Random) -> bool:
    """Changes to a store; returns whether it can be sealed again."""
    import zarr

    sealed = chance.random() < 0.7
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        kind = chance.random()
        if kind < 0.6:
            file = chance.choice(sorted(path.rglob("zarr.json")))
            with contextlib.suppress(ValueError):
                document = json.loads(file.read_text())
                change(document, chance)
                with contextlib.suppress(UnicodeEncodeError):
                    file.write_text(json.dumps(document))
        elif kind < 0.63:
            file = chance.choice(sorted(path.rglob("zarr.json")))
            text = chance.choice(("[" * 100_000, "{}", "null", "", '{"a":' * 5000, "[1]", "9" * 5000, "\x00"))
            file.write_text(text)
        else:
            names = sorted(file for file in path.rglob("c/**/*") if file.is_file())
            file = chance.choice(names)
            array = file.parents[len(file.relative_to(path).parts) - 3]
            with contextlib.suppress(Exception):
                value: Any = zarr.open_array(array, mode="r+")
                if value.shards is None:
                    file.write_bytes(chunk(file.read_bytes(), chance, value))
                elif value.dtype.kind == "f" and chance.random() < 0.5:
                    value[...] = chance.choice((-1.0, 2.0, float("nan"), float("inf")))
                else:
                    value[...] = chance.choice((-7, 49, 50, 1 << 30))
    return sealed


def reseal(path: Path) -> None:
    """Manifest and digests as they would be if the store had been written so."""
    from attnlens.schemas.version import NAMESPACE
    from attnlens.store.manifest import MANIFEST_ARRAYS, document_digest, file_hashes, listed, manifest_hash

    for name in ("0000", "0001"):
        with contextlib.suppress(Exception):
            folder = path / name
            names = listed(folder)
            hashes = file_hashes(folder, names)
            import numpy as np
            import zarr

            for array, values in zip(MANIFEST_ARRAYS, (names, hashes), strict=True):
                zarr.open_array(folder / array, mode="r+")[:] = np.asarray(values, dtype=np.dtypes.StringDType())
            document = json.loads((folder / "zarr.json").read_text())
            ours = document["attributes"][NAMESPACE]
            ours["manifest"] = manifest_hash(dict(zip(names, hashes, strict=True)))
            ours["digest"] = document_digest(document)
            (folder / "zarr.json").write_text(json.dumps(document))


def zipped(path: Path, chance: random.Random) -> Path:
    """The store as a zip that is damaged now and then."""
    target = path.with_name("run.zarr.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.writestr(file.relative_to(path).as_posix(), file.read_bytes())
    data = bytearray(target.read_bytes())
    for _ in range(chance.choice((0, 1, 1, 5))):
        at = chance.randrange(max(0, len(data) - 6000), len(data))
        data[at] = chance.randrange(256)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    target.write_bytes(data)
    return target


class TooLong(BaseException):
    """A command took more than it may."""


def tell(signal_number: int, frame: Any) -> None:
    raise TooLong


def commands(store: Path, folder: Path) -> list[list[str]]:
    return [
        ["info", str(store)], ["info", str(store), "--json"], ["ls", str(store)], ["verify", str(store), "-q"],
        ["render", str(store), "-q", "-o", str(folder / "p"), "--workers", "1", "--overwrite"],
        ["render", str(store), "-q", "-o", str(folder / "q"), "--workers", "1", "--heads", "mean", "--queries", "1:3",
         "--text", "top-k", "--format", "svg"],
        ["crop", str(store), "-q", "-o", str(folder / "c.zarr"), "--lite"],
        ["crop", str(store), "-q", "-o", str(folder / "d.zarr"), "--redact", "2:4", "--tokens", "1:9"],
        ["merge", str(store), str(store), "-q", "-o", str(folder / "m.zarr")],
    ]  # fmt: skip


def run(arguments: list[str]) -> str | None:
    """What is wrong with how a command ended, None if nothing."""
    from attnlens import cli

    sys.argv = ["lens", *[a for a in arguments if a != "--overwrite"]]
    out, err = io.StringIO(), io.StringIO()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of CPU: the machine may be busy
    signal.alarm(WALL)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code: Any = 0
    except SystemExit as left:
        code = left.code or 0
    except TooLong:
        return f"took more than {SECONDS} s of CPU, or {WALL} s"
    except BaseException:  # noqa: BLE001
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    said = err.getvalue()
    if code not in (0, 1, 2) or "Traceback" in said:
        return f"left with {code}: {said}"
    if {"\x1b", "\x07", "\u202e"} & set(said + out.getvalue()) and "--json" not in arguments:
        return f"control characters reach the terminal: {said + out.getvalue()!r}"
    return None


def fuzz(first: int, count: int) -> list[str]:
    """Runs every command on `count` stores; returns what went wrong."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, tell)
    signal.signal(signal.SIGPROF, tell)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = make(folder / "whole")
        for number in range(first, first + count):
            chance = random.Random(number)
            place = folder / "now"
            path = Path(shutil.copytree(whole, place / "run.zarr"))
            if damage(path, chance):
                reseal(path)
            store = zipped(path, chance) if chance.random() < 0.25 else path
            for arguments in commands(store, place):
                if problem := run(arguments):
                    wrong.append(f"store {number}: lens {arguments[0]} {' '.join(arguments[2:])}\n{problem}")
                    print(wrong[-1], flush=True)
            shutil.rmtree(place)
    return wrong


if __name__ == "__main__":
    start, n_store = int(sys.argv[1]), int(sys.argv[2])
    began = time.process_time()
    found = fuzz(start, n_store)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{n_store} stores, {len(found)} problems, {time.process_time() - began:.0f} s of CPU, peak {peak} MiB")
    sys.exit(bool(found))
