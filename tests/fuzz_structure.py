"""Stores damaged by someone who knows their structure, and every command that reads one.

    python tests/fuzz_structure.py FIRST COUNT [KEEP]

Each number is one store, the same each time; KEEP is a folder where those are kept that something is wrong with. Half
of the stores have their proofs made anew, so that what lies deeper is reached. Of each, no command may end in a
traceback, take more than 10 s of CPU or 2 GiB, or show what was not written: of a capture that was complete, and whose
proofs were left alone, a value is the one that was written, or refused; and what `verify` passes reads as before.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from structure_damage import damage, reseal, zip_directory, zipped

SECONDS, WALL, STUCK = 10, 100, 150
"""Of CPU, and by the clock, for one command; and after how long without a word a process is ended."""
MEMORY = 4 << 30
GREW = 2 << 20
"""KiB that a process may have needed at most."""
CASES = 40
"""Stores for each process."""


@dataclass
class Base:
    """A store that is damaged, and what it held: values by capture and array, metadata, bytes of files."""

    path: Path
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def make(folder: Path) -> list[Base]:
    """The stores that all are made of."""
    from attnlens.store.batch import open_batch
    from attnlens.store.tools.crop import crop
    from attnlens.store.tools.keep import Keep
    from attnlens.store.writer import StoreWriter
    from store_sample import Sample
    from test_store_qk import Vectors

    folder.mkdir()
    writer = StoreWriter.create(folder / "dense.zarr")
    Sample(n_prompt=12, n_generated=4, n_layer=3, sliding={1: 4}, none_layers=(2,)).write(writer)
    other = Sample(n_prompt=6, n_generated=5, name=writer.new_id(), seed=2)
    with writer.capture(other.metadata(), capacity=14) as out:
        other.prompt(out)
        other.step(out, 6)
        out.fail("stopped")
    large = Sample(n_prompt=150, n_generated=3, n_layer=4, n_head=4, seed=3)
    large.write(folder / "large.zarr")
    Vectors(kinds=("full", "sliding", "none", "sinks", "shared"), dtype="bfloat16", n_prompt=20).write(
        folder / "qk.zarr"
    )
    wanted = [("a", "1" * 64), ("b/x", "2" * 64), ("c", "3" * 64)]
    batch = open_batch(folder / "batch.zarr", wanted, {"model": "m"}, mode="new", run="r", shared=False)
    for prompt in batch.pending()[:2]:
        batch.claim(prompt.capture)
        one = Sample(n_prompt=5, n_generated=2, n_layer=2, name=prompt.capture, seed=4)
        with batch.capture(one.metadata(prompt_id=prompt.prompt_id), capacity=9) as out:
            one.prompt(out)
            for row in (5, 6):
                one.step(out, row)
            out.finish({"completion": "x"})
    batch.close()
    crop(folder / "dense.zarr", folder / "crop.zarr", captures=["0000"], keep=Keep(tokens="3:14", layers="0,2"))
    crop(folder / "dense.zarr", folder / "lite.zarr", captures=["0000"], keep=Keep(lite=True), dtype="uint8")
    shutil.copytree(Path(__file__).parent / "stores/format-1.zarr", folder / "archived.zarr")
    return [held(path) for path in sorted(folder.glob("*.zarr"))]


def held(path: Path) -> Base:
    """What a store that nothing was done to holds."""
    import attnlens

    base = Base(path)
    for capture in attnlens.open(path):
        if capture.status != "complete":
            continue
        base.values[capture.id] = {name: capture[name][:] for name in capture.names}
        base.rows[capture.id] = _rows(capture)
        base.about[capture.id] = capture.metadata.model_dump(mode="json")
        prefix = f"{capture.id}/"
        base.files |= {name: (path / name).read_bytes() for name in _names(path) if name.startswith(prefix)}
    return base


def _names(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def _rows(capture: Any) -> Any:
    """The first and the last row of attention, of the layers that are there."""
    if not {"attention_weight", "attention_q"} & set(capture.names):
        return None
    kept = {axis: np.flatnonzero(mask).tolist() for axis, mask in capture.kept.items()}
    queries = [query for query in kept.get("query", range(capture.n_token)) if query < capture.committed]
    layers = [
        layer for layer in np.flatnonzero(capture.attention_layers).tolist() if layer in kept.get("layer", [layer])
    ]
    return capture.attention.rows([queries[0], queries[-1]], layers=layers, heads=kept.get("head"))


class TooLong(BaseException):
    """A command took more than it may."""


def tell(signal_number: int, frame: Any) -> None:
    raise TooLong


@contextlib.contextmanager
def timed() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WALL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def run(arguments: list[str]) -> tuple[Any, str, str]:
    """Exit status of a command, or what is wrong with how it ended; stdout; stderr."""
    import logging

    from attnlens import cli

    sys.argv = ["lens", *arguments]
    out, err = io.StringIO(), io.StringIO()
    logger, before = logging.getLogger("attnlens"), list(logging.getLogger("attnlens").handlers)
    try:
        with timed(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code: Any = 0
    except SystemExit as left:
        code = left.code or 0
    except TooLong:
        code = f"took more than {SECONDS} s of CPU, or {WALL} s"
    except BaseException:  # noqa: BLE001
        code = traceback.format_exc()
    finally:
        logger.handlers[:] = before
    said, told = err.getvalue(), out.getvalue()
    if code not in (0, 1, 2) and isinstance(code, int):
        code = f"left with {code}: {said}"
    elif "Traceback" in said:
        code = said
    elif code == 1 and arguments[0] != "verify" and not said.strip().split("\n")[-1].startswith("lens: "):
        code = f"left with 1 and said {said!r}"
    elif {"\x1b", "\x07", "\u202e"} & set(said + told) and "--json" not in arguments:
        code = f"control characters reach the terminal: {said + told!r}"
    elif len(said) > 20_000:
        code = f"said {len(said)} characters: {said[:300]!r}"
    return code, told, said


def same(one: Any, two: Any) -> bool:
    """Whether two arrays are equal, NaN included: numbers bit by bit."""
    one, two = np.asarray(one), np.asarray(two)
    if one.dtype.kind not in "biuf":
        return bool(one.tolist() == two.tolist())
    return bool(one.shape == two.shape and one.dtype == two.dtype and one.tobytes() == two.tobytes())


def reading(store: Path, base: Base, whole: bool) -> tuple[list[str], bool]:
    """What is wrong with how the store reads, and whether everything reads as before. `whole`: its proofs are."""
    import attnlens
    from attnlens.schemas.errors import AttnlensError

    wrong, equal = [], True
    try:
        opened = attnlens.open(store)
        repr(opened), len(opened), opened.prompt_ids
    except AttnlensError:
        return [], False
    for name, values in base.values.items():
        try:
            capture = opened[name]
            equal = equal and capture.metadata.model_dump(mode="json") == base.about[name]
        except AttnlensError:
            equal = False
            continue
        for array, value in values.items():
            try:
                found = capture[array][:]
            except AttnlensError:
                equal = False
                continue
            if not same(found, value):
                equal = False
                if whole:
                    wrong.append(f"{name}/{array} reads as something else than was written")
        try:
            rows = _rows(capture)
            if rows is None or base.rows[name] is None:
                equal = equal and rows is base.rows[name]
            elif not same(rows, base.rows[name]):
                equal = False
                if whole:
                    wrong.append(f"{name}: rows of attention are others than were written")
        except AttnlensError:
            equal = False
    for name in opened.ids:
        if name not in base.values:
            with contextlib.suppress(AttnlensError):
                capture = opened[name]
                for array in capture.names:
                    with contextlib.suppress(AttnlensError):
                        capture[array][:]
                with contextlib.suppress(AttnlensError):
                    _rows(capture)
    return wrong, equal


def served(store: Path, base: Base, chance: random.Random, whole: bool) -> list[str]:
    """What is wrong with the answers of `lens view`."""
    from attnlens.render.viewer.serve import open_server
    from attnlens.render.viewer.wire import Refusal, Request
    from attnlens.schemas.errors import AttnlensError

    wrong: list[str] = []
    try:
        server = open_server([store])
    except AttnlensError:
        return []
    keys = [
        "zarr.json",
        *chance.sample(sorted(base.files), min(12, len(base.files))),
        "../outside",
        "0000",
        "0001/zarr.json",
    ]
    with server:
        for key in keys:
            span = chance.choice((None, "bytes=0-7", "bytes=-20", "bytes=5-"))
            many = json.dumps([[key, None], [key, [0, 8]], [key, -9]]).encode()
            headers = (("host", "localhost"), *((("range", span),) if span else ()))
            for method, path, body in (("GET", key, b""), ("POST", "", many)):
                address = f"/{server.token}/store/0/{path}"
                request = Request(method, address, headers, partial(lambda body, most: body, body))
                try:
                    answer = server.answer(request)
                    data = b"".join(answer.pieces)
                except Refusal as refusal:
                    if "error of its own" in refusal.line:
                        wrong.append(f"{method} {key}: {refusal.line}")
                    continue
                except OSError:
                    continue
                known = base.files.get(key)
                if method == "GET" and whole and known is not None and not key.endswith("zarr.json"):
                    part = known if span is None else known[:8] if span.endswith("0-7") else known[-20:]
                    part = known[5:] if span == "bytes=5-" else part
                    if data != part and answer.status in (200, 206):
                        wrong.append(f"GET {key} gives other bytes than were written")
    return wrong


def told(store: Path, folder: Path, chance: random.Random) -> list[list[str]]:
    """The commands of one case: those that are quick, and some of the others."""
    name = str(store)
    some = [
        ["render", name, "-q", "-o", str(folder / "p"), "--workers", "1", "--queries", "-1"],
        ["render", name, "-q", "-o", str(folder / "q"), "--workers", "1", "--heads", "mean", "--queries", "1:3",
         "--text", "top-k", "--format", "svg"],
        ["render", name, "-q", "-o", str(folder / "g"), "--workers", "1", "--capture", "0000", "--queries", "2"],
        ["export", name, str(folder / "out.npz"), "-q"],
        ["export", name, str(folder / "out.safetensors"), "-q"],
        ["export", name, str(folder / "out.parquet"), "-q"],
        ["export", name, str(folder / "out.h5"), "-q"],
        ["export", name, str(folder / "out.inif.json"), "-q"],
        ["export", name, str(folder / "out.html"), "-q"],
        ["crop", name, "-q", "-o", str(folder / "c.zarr"), "--lite"],
        ["crop", name, "-q", "-o", str(folder / "d.zarr"), "--redact", "2:4", "--tokens", "0:9"],
        ["pack", name, "-q", "-o", str(folder / "again.zarr.zip")],
        ["unpack", name, "-q", "-o", str(folder / "u.zarr")],
        ["merge", name, name, "-q", "-o", str(folder / "m.zarr")],
        ["diff", f"{name}#0000", f"{name}#0000", "-q", "--json", "-o", str(folder / "v"), "--workers", "1",
         "--queries", "3"],
        ["migrate", name, "--dry-run"],
    ]  # fmt: skip
    quick = [["info", name], ["ls", name], ["ls", name, "--json"], ["info", name, "--json", "--capture", "0000"]]
    return [*quick, *chance.sample(some, 4)]


def packed(store: Path, folder: Path, base: Base, arguments: list[str]) -> list[str]:
    """What a tool that copies has made of a store whose proofs were left alone: what it was, or nothing."""
    import attnlens
    from attnlens.schemas.errors import AttnlensError

    wrong: list[str] = []
    if arguments[0] in ("pack", "unpack"):
        wrong, _ = reading(Path(arguments[4]), base, whole=True)
    if arguments[0] == "merge":
        with contextlib.suppress(AttnlensError):
            for capture in attnlens.open(arguments[5]):
                match = [name for name, about in base.about.items() if about["created"] == capture.metadata.created
                         and about["prompt_id"] == capture.metadata.prompt_id]  # fmt: skip
                if (
                    capture.status == "complete"
                    and len(match) == 1
                    and not same(capture["token_id"][:], base.values[match[0]]["token_id"])
                ):
                    wrong.append(f"token_id of {capture.id}")
    if arguments[0] == "export" and arguments[2].endswith(".npz"):
        for file in [Path(arguments[2])]:
            with np.load(file) as read:
                for key in read.files:
                    capture, _, array = key.rpartition("/")
                    known = base.values.get(capture or "0000", {}).get(array)
                    if known is not None and known.dtype.kind not in "biuf":  # which numpy ends with NUL
                        known = np.asarray([str(text).replace("\0", "\u2400") for text in known])
                    if known is not None and len(base.values) > 1 and capture and not same(read[key], known):
                        wrong.append(f"{key} of {file.name}")
    if arguments[0] == "export" and arguments[2].endswith(".html"):
        wrong += _page(Path(arguments[2]), base)
    return [f"lens {arguments[0]}: {one}" for one in wrong]


def _page(file: Path, base: Base) -> list[str]:
    import base64

    found = re.search(rb'id="attnlens-files">(.*?)</script>', file.read_bytes(), re.DOTALL)
    assert found is not None
    wrong = []
    for kept in json.loads(found[1]).values():
        for key, text in kept.items():
            known = base.files.get(key)
            if known is not None and base64.b64decode(text) != known:
                wrong.append(f"{key} in {file.name} is not what was written")
    return wrong


def case(number: int, bases: list[Base], place: Path) -> list[str]:
    """Make store `number`, and everything that reads read it; what is wrong."""
    from attnlens.schemas.errors import AttnlensError
    from attnlens.store.places import Folder

    chance = random.Random(number)
    base = chance.choice(bases)
    path = place / "run.zarr"
    (place / "outside").parent.mkdir(parents=True)
    (place / "outside").write_text("{}")
    shutil.copytree(base.path, path)
    zip_too, done, whole = chance.random() < 0.3, [], True
    if not zip_too or chance.random() < 0.4:
        done += damage(path, chance)
        if chance.random() < 0.5:
            reseal(path, chance)
            whole = False
    store = path
    if zip_too:
        store = place / "run.zarr.zip"
        if path.is_dir() and chance.random() < 0.5:
            with contextlib.suppress(AttnlensError, OSError):
                from attnlens.store.tools.pack import pack

                pack(path, store)
        if not store.exists():
            zipped(path, store)
        for _ in range(chance.choice((0, 1, 1, 2)) if done else chance.choice((1, 1, 2))):
            with contextlib.suppress(IndexError):
                done.append(zip_directory(store, chance))
    Folder.apart = chance.random() < 0.3  # as if far away: by the front
    wrong: list[str] = []
    what = f"{base.path.name}, {'sealed again' if not whole else 'not sealed'}: {'; '.join(done)}"
    try:
        with timed():
            found, equal = reading(store, base, whole)
        wrong += found
        code, _, _ = run(["verify", str(store), "-q"])
        if isinstance(code, str):
            wrong.append(f"lens verify: {code}")
        elif code == 0 and whole and not equal:
            wrong.append("verify passes, and not everything reads as before")
        for arguments in told(store, place, chance):
            code, _, _ = run(arguments)
            if isinstance(code, str):
                wrong.append(f"lens {arguments[0]} {' '.join(arguments[2:])}: {code}")
            elif code == 0 and whole:
                with timed():
                    wrong += packed(store, place, base, arguments)
        Folder.apart = False  # the server reads what is on this machine itself
        if chance.random() < 0.5:
            with timed():
                wrong += served(store, base, chance, whole)
    except TooLong:
        wrong.append("reading took too long")
    except BaseException:  # noqa: BLE001
        wrong.append(f"reading: {traceback.format_exc()}")
    finally:
        Folder.apart = False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peak > GREW:
        wrong.append(f"{peak >> 10} MiB")
    return [f"store {number}, {what}\n{one}" for one in wrong]


def child(first: int, count: int, folder: Path) -> None:
    """Run some cases in this process; one line of JSON before each and one after."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, tell)
    signal.signal(signal.SIGPROF, tell)
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    bases = [held(path) for path in sorted((folder / "whole").glob("*.zarr"))]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in range(first, first + count):
        talk.write(json.dumps({"begin": number}) + "\n")
        place = folder / f"{number}"
        wrong = case(number, bases, place)
        spent = time.process_time()
        talk.write(json.dumps({"end": number, "wrong": wrong, "cpu": spent}) + "\n")
        if not wrong:
            shutil.rmtree(place, ignore_errors=True)


def fuzz(first: int, count: int, keep: Path | None = None) -> tuple[list[str], float]:
    """What went wrong with stores first … first + count - 1, and seconds of CPU."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "whole")
        number = first
        while number < first + count:
            amount = min(CASES, first + count - number)
            number = _watch(number, amount, folder, wrong, keep)
            print(
                f"{number - first} stores, {len(wrong)} problems, {_spent():.0f} s of CPU", file=sys.stderr, flush=True
            )
    return wrong, _spent()


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(first: int, count: int, folder: Path, wrong: list[str], keep: Path | None) -> int:
    """Run a process over some cases; the number of the next. One that dies or is stuck costs the case it was at."""
    command = [sys.executable, __file__, "--child", str(first), str(count), str(folder)]
    with (
        (folder / "said").open("w+") as err,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True) as process,
    ):
        assert process.stdout is not None
        number, running = first, False

        def end(number: int, frame: Any) -> None:
            process.kill()
            sys.exit(1)

        before = signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(STUCK * 3)
        for line in process.stdout:
            signal.alarm(STUCK * 3)
            said = json.loads(line)
            running = "begin" in said
            number = said.get("begin", number)
            for one in said.get("wrong", []):
                _note(one, wrong)
            if said.get("wrong") and keep is not None:
                shutil.copytree(folder / f"{number}", keep / f"{number}", symlinks=True, dirs_exist_ok=True,
                                ignore=lambda where, names: [n for n in names if not (Path(where) / n).is_file()
                                                             and not (Path(where) / n).is_dir()])  # fmt: skip
            if not running:
                shutil.rmtree(folder / f"{number}", ignore_errors=True)
                number += 1
        code = process.wait()
        signal.alarm(0)
        signal.signal(signal.SIGTERM, before)
        if code or running:
            err.seek(0)
            _note(f"store {number}\nthe process ended with {code}: {err.read()[-2000:]}", wrong)
            return number + 1
    return number


def _note(one: str, wrong: list[str]) -> None:
    wrong.append(one)
    print(one, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
        sys.exit()
    start, n_store = int(sys.argv[1]), int(sys.argv[2])
    kept = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    problems, seconds = fuzz(start, n_store, kept)
    print(f"stores {start} … {start + n_store - 1}, {len(problems)} problems, {seconds:.0f} s of CPU")
    sys.exit(bool(problems))
