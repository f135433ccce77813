"""Damage to a store by someone who knows its structure, and its proofs made anew afterwards.

Every function takes a random source and says in a few words what it did. None of it uses the reader or the tools.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr

NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, 7, 13, 64, 255, 1 << 16, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 70,
    -(1 << 31), -(1 << 63), 10**400, 0.5, -0.0, 1e308, 5e-324, True, False, None,
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", "0", "0000", "0001", "9999", "../x", "/etc/passwd", "a/b", "a\\b", "\0", "x" * 5000, "\x1b[31m", "\u202e",
    "[/bold]", "{}", "%s%n", "NaN", "token", "query", "layer", "depth", "full", "none", "dense", "qk", "complete",
    "partial", "planned", "failed", "float16", "float32", "uint8", "int32", "uint16", "bool", "string", "bfloat16",
    "sqrt254", "whole-exponent", "bytes", "zstd", "blosc", "crc32c", "gzip", "transpose", "sharding_indexed",
    "vlen-utf8", "little", "big", "start", "end", "regular", "default", "v2", "group", "array", "0" * 64, "f" * 64,
    "e\u0301", "\U0001f469\u200d\U0001f469",
)  # fmt: skip
NESTED: tuple[Any, ...] = (
    [], {}, [[]], [{}], [None], [0], [1], [1, 1], [1, 1, 1], [0, 0, 0], [-1], [[0, 1]], [[1, 0]], [[0, 1 << 40]],
    {"": ""}, {"name": "x"}, {"attnlens": {}}, ["a"] * 300, [[[[[[]]]]]],
)  # fmt: skip
CODECS: tuple[Any, ...] = (
    {"name": "bytes"}, {"name": "bytes", "configuration": {"endian": "big"}}, {"name": "zstd"},
    {"name": "zstd", "configuration": {"level": -99, "checksum": True}},
    {"name": "zstd", "configuration": {"level": 1 << 40, "checksum": False}}, {"name": "crc32c"}, {"name": "vlen-utf8"},
    {"name": "transpose", "configuration": {"order": [0, 0, 0]}}, {"name": "transpose", "configuration": {"order": []}},
    {"name": "transpose", "configuration": {"order": [1, 0]}},
    {"name": "transpose", "configuration": {"order": [3, 1, 2, 0]}}, {"name": "gzip", "configuration": {"level": 1}},
    {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": 3,
                                        "blocksize": 0}},
    {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": 0,
                                        "blocksize": -1}},
    {"name": "numcodecs.pickle"}, {"name": 3}, {}, "bytes", None,
)  # fmt: skip
RAW: tuple[str, ...] = (
    "", " ", "{", "{}", "[]", "null", "0", '"x"', "\x00", "\ufeff{}", "[" * 100_000, '{"a":' * 50_000, "9" * 5000,
    '{"a":1}{"b":2}', "NaN", '{"zarr_format":3,"node_type":"group","attributes":NaN}', '{"a":"\\ud800"}', "{'a':1}",
    '{"zarr_format":3,"node_type":"group","attributes":{"attnlens":[]}}', "// x", '{"a":1,}', "-", '{"":{"":{"":""}}}',
)  # fmt: skip

Chance = random.Random


def folder_of(path: Path) -> list[Path]:
    """Folders of the captures."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name.isdigit())


def arrays_of(capture: Path) -> list[Path]:
    return sorted(file.parent for file in capture.glob("*/zarr.json"))


def chunks_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("c/**/*") if file.is_file() and not file.is_symlink())


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values inside a JSON value are."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in list(value.items())[:200]:
            found += places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:200]):
            found += places(item, (*path, number))
    return found


def other(value: Any, chance: Chance) -> Any:
    """Something in place of a value: of its own kind twice as often as of another."""
    kind = chance.random()
    if isinstance(value, bool | None) or kind < 0.2:
        return chance.choice((*NUMBERS, *NESTED, *TEXTS))
    if isinstance(value, int | float):
        if kind < 0.6:
            return value + chance.choice((-1, 1, 2, -2, 8, 1 << 10, 1 << 20, -(1 << 20)))
        return chance.choice(NUMBERS)
    if isinstance(value, str):
        if kind < 0.4 and value:
            at = chance.randrange(len(value))
            return value[:at] + chance.choice(("", "\0", "/", "..", "\u202e", "A", "0")) + value[at + 1 :]
        return chance.choice(TEXTS)
    if isinstance(value, list):
        if kind < 0.4:
            return value[::-1] if kind < 0.3 else value[:-1]
        if kind < 0.6:
            return value + value[-1:]
        if kind < 0.7:
            return (value or [0]) * chance.choice((2, 3, 100))
    if isinstance(value, dict) and kind < 0.5:
        return dict(list(value.items())[chance.randrange(2) :: 2])
    return chance.choice(NESTED)


def edit(document: Any, chance: Chance, under: tuple[Any, ...] = ()) -> str:
    """One change somewhere below `under` of a JSON document."""
    found = [place for place in places(document) if place[: len(under)] == under]
    if not found:
        return "nothing"
    # Every depth alike, or the many values of consolidated metadata would take all changes.
    depth = chance.choice(sorted({len(place) for place in found}))
    place = chance.choice([place for place in found if len(place) == depth])
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    last, kind = place[-1], chance.random()
    if kind < 0.15:
        del parent[last]
        return f"without {place}"
    if kind < 0.25 and isinstance(parent, dict):
        name = chance.choice(("", "x", "../x", "attnlens", "\0", "a/b", "zarr.json", "c", "token_id", "x" * 300))
        parent[name] = parent[last] if kind < 0.2 else parent.pop(last)
        return f"{place} also, or instead, as {name[:20]!r}"
    if kind < 0.3 and isinstance(parent, list) and len(parent) > 1:
        parent[last], parent[0] = parent[0], parent[last]
        return f"{place} and the first have changed places"
    parent[last] = other(parent[last], chance)
    return f"{place} is {str(parent[last])[:60]!r}"


def load(file: Path) -> Any:
    """A document, or None if earlier damage left none."""
    if not file.is_file():
        return None  # a pipe would be waited for
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def save(file: Path, document: Any) -> None:
    with contextlib.suppress(UnicodeEncodeError, RecursionError):
        file.write_bytes(json.dumps(document).encode())


def raw_json(file: Path, chance: Chance) -> str:
    """Text that is no JSON, or JSON that parsers disagree on."""
    with contextlib.suppress(UnicodeDecodeError):
        text = file.read_text() if file.is_file() else ""
        kind = chance.randrange(6)
        if kind == 0:
            text = chance.choice(RAW)
        elif kind == 1:  # a key twice: most parsers take the last
            text = text.replace('"attributes"', '"attributes": {}, "attributes"', 1)
            text = text.replace('"shape"', '"shape": [1], "shape"', 1)
        elif kind == 2:
            text = text.replace(": 0", chance.choice((": NaN", ": -Infinity", ": 1e999", ": 00", ": 0x0")), 1)
        elif kind == 3:
            text = text[: chance.randrange(len(text) + 1)]
        elif kind == 4:
            deep = chance.choice(("[" * 5000 + "]" * 5000, '{"a":' * 900 + "1" + "}" * 900, "9" * 6000))
            text = text.replace('"attributes"', f'"deep": {deep}, "attributes"', 1)
        else:
            text = text + chance.choice((" ", "\n\n", "\0", "x", "{}"))
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return f"{file.parent.name}/zarr.json: raw text {kind}"
    return "nothing"


def root(path: Path, chance: Chance) -> str:
    """The store's own metadata."""
    file = path / "zarr.json"
    if chance.random() < 0.2:
        return raw_json(file, chance)
    document = load(file)
    under = ("attributes", "attnlens") if chance.random() < 0.7 else ()
    said = edit(document, chance, under)
    save(file, document)
    return f"root: {said}"


def capture(path: Path, chance: Chance) -> str:
    """A capture's metadata, the copies of its arrays' among them."""
    file = chance.choice(folder_of(path)) / "zarr.json"
    if chance.random() < 0.15:
        return raw_json(file, chance)
    document = load(file)
    under = chance.choice((("attributes", "attnlens"),) * 6 + (("attributes",), ("consolidated_metadata",), ()))
    said = edit(document, chance, under)
    save(file, document)
    return f"{file.parent.name}: {said}"


def array(path: Path, chance: Chance) -> str:
    """An array's zarr.json, and mostly its copy in the group's document too."""
    folder = chance.choice(arrays_of(chance.choice(folder_of(path))))
    file = folder / "zarr.json"
    if chance.random() < 0.1:
        return raw_json(file, chance)
    document = load(file)
    if not isinstance(document, dict):
        return "nothing"
    kind = chance.random()
    if kind < 0.25 and isinstance(document.get("codecs"), list) and document["codecs"]:
        codecs = document["codecs"]
        inner = codecs[0].get("configuration", {}).get("codecs") if isinstance(codecs[0], dict) else None
        listed = inner if isinstance(inner, list) and inner and chance.random() < 0.6 else codecs
        at = chance.randrange(len(listed) + 1)
        if chance.random() < 0.5:
            listed.insert(at, chance.choice((*CODECS, listed[0])))
        else:
            listed[at % len(listed)] = chance.choice(CODECS)
        said = f"codecs at {at}"
    elif kind < 0.5:
        key = chance.choice(("shape", "chunk_grid", "fill_value", "data_type", "dimension_names", "codecs",
                             "chunk_key_encoding", "zarr_format", "node_type"))  # fmt: skip
        said = edit(document, chance, (key,)) if key in document else "nothing"
        if key == "fill_value":
            document[key] = chance.choice((None, "NaN", "Infinity", 0, -1, "x", 1 << 40, 0.5, True, [], "0x7fc00000"))
            said = f"fill_value {document[key]!r}"
    elif kind < 0.6:
        other_one = load(chance.choice(arrays_of(folder.parent)) / "zarr.json")
        document, said = other_one, "the zarr.json of another array"
    else:
        said = edit(document, chance)
    save(file, document)
    if chance.random() < 0.75:
        group = load(folder.parent / "zarr.json")
        with contextlib.suppress(KeyError, TypeError):
            group["consolidated_metadata"]["metadata"][folder.name] = document
            save(folder.parent / "zarr.json", group)
    return f"{folder.parent.name}/{folder.name}: {said}"


def rewrite(folder: Path, values: Any) -> None:
    """Values of another length in an array, its zarr.json and that in the group's document with it."""
    document = load(folder / "zarr.json")
    document["shape"] = list(np.shape(values))
    save(folder / "zarr.json", document)
    shutil.rmtree(folder / "c", ignore_errors=True)
    target: Any = zarr.open_array(folder, mode="r+")
    target[...] = values
    group = load(folder.parent / "zarr.json")
    group["consolidated_metadata"]["metadata"][folder.name] = document
    save(folder.parent / "zarr.json", group)


def manifest(path: Path, chance: Chance) -> str:
    """The list of files and their hashes."""
    folder = chance.choice(folder_of(path))
    if not (folder / "manifest_file").is_dir():
        return "nothing"
    names, hashes = ([str(text) for text in _open(folder / name)[:]] for name in ("manifest_file", "manifest_sha256"))
    at, kind = chance.randrange(len(names)), chance.randrange(8)
    if kind == 0:
        names[at] = chance.choice(
            ("../0000/token/zarr.json", "../../x", "/etc/passwd", "", "\0", "c", "zarr.json", ".")
        )
    elif kind == 1:
        names[at] = names[at - 1]
    elif kind == 2:
        del names[at], hashes[at]
    elif kind == 3:
        names[at], names[at - 1] = names[at - 1], names[at]
    elif kind == 4:
        hashes[at] = chance.choice(("", "0" * 64, hashes[at].upper(), hashes[at][:-1], "x" * 70000, hashes[at - 1]))
    elif kind == 5:
        hashes = hashes[: chance.randrange(len(hashes))]
    elif kind == 6:
        names, hashes = names + ["x"] * 3000, hashes + ["0" * 64] * 3000
    else:
        names.append(chance.choice(("manifest_file/c/0", "chunk_sha256/zarr.json", "new", "token/c/9")))
        hashes.append("0" * 64)
    rewrite(folder / "manifest_file", np.asarray(names, np.dtypes.StringDType()))
    rewrite(folder / "manifest_sha256", np.asarray(hashes, np.dtypes.StringDType()))
    return f"{folder.name}: manifest, kind {kind}"


def _open(folder: Path) -> Any:
    if not all(file.is_file() or file.is_dir() for file in folder.rglob("*")):
        raise OSError("a pipe would be waited for")
    return zarr.open_array(folder, mode="r")


def front(path: Path, chance: Chance) -> str:
    """The copies that a reader far away takes first."""
    files = sorted(path.glob("*/manifest_file/front.bin"))
    if not files:
        return "nothing"
    file = chance.choice(files)
    head, _, rest = file.read_bytes().partition(b"\n")
    kind = chance.randrange(7)
    listed = json.loads(head) if head.startswith(b"[") else []
    if kind < 4 and listed:
        said = edit(listed, chance)
        if kind == 1:
            listed = listed + listed[:1]
        head = json.dumps(listed).encode()
    elif kind == 4:
        at = chance.randrange(len(rest) or 1)
        rest, said = rest[:at] + bytes([chance.randrange(256)]) + rest[at + 1 :], f"byte {at}"
    elif kind == 5:
        rest, said = rest[: chance.randrange(len(rest) or 1)], "cut short"
    else:
        head, said = (
            chance.choice((b"", b"[" * 100_000, b"null", b"{}", b'[["a",1e3,0]]', b"[[1,2,3]]", head * 2)),
            "head",
        )
    file.write_bytes(head + b"\n" + rest)
    return f"{file.parent.parent.name}: front, {said}"


def digests(path: Path, chance: Chance) -> str:
    """Digests of chunks, and what the attribute says of them."""
    found = sorted(path.glob("*/chunk_sha256/zarr.json"))
    if not found:
        return "nothing"
    folder = chance.choice(found).parent
    if chance.random() < 0.6:
        document = load(folder / "zarr.json")
        said = edit(document, chance, ("attributes", "attnlens", "arrays"))
        save(folder / "zarr.json", document)
        group = load(folder.parent / "zarr.json")
        with contextlib.suppress(KeyError, TypeError):
            group["consolidated_metadata"]["metadata"][folder.name] = document
            save(folder.parent / "zarr.json", group)
        return f"{folder.parent.name}: digests, {said}"
    values = _open(folder)[:]
    kind = chance.randrange(4)
    if kind == 0:
        values[chance.randrange(len(values))] ^= 1
    elif kind == 1:
        values[chance.randrange(len(values))] = 0
    elif kind == 2:
        values = values[::-1]
    else:
        values = values[: len(values) // 2]
    rewrite(folder, values)
    return f"{folder.parent.name}: digests, kind {kind}"


def shard(path: Path, chance: Chance) -> str:
    """The index at the end of a file of chunks, with a checksum that fits it."""
    found = [folder for one in folder_of(path) for folder in arrays_of(one) if _inner(folder)]
    if not found:
        return "nothing"
    folder = chance.choice(found)
    document = load(folder / "zarr.json")
    outer = document["chunk_grid"]["configuration"]["chunk_shape"]
    count = int(np.prod([a // b for a, b in zip(outer, _inner(folder) or outer, strict=True)]))
    files = chunks_of(folder)
    if not files:
        return "nothing"
    file = chance.choice(files)
    data = file.read_bytes()
    size = count * 16 + 4
    if len(data) < size:
        return "nothing"
    index = np.frombuffer(data[-size:-4], "<u8").reshape(count, 2).copy()
    for _ in range(chance.choice((1, 1, 3))):
        row, column, kind = chance.randrange(count), chance.randrange(2), chance.randrange(6)
        if kind == 0:
            index[row] = index[chance.randrange(count)]
        elif kind == 1:
            index[row] = (1 << 64) - 1
        elif kind == 2:
            index[row, column] = chance.choice((0, 1, len(data), len(data) - 1, 1 << 31, 1 << 40, (1 << 63) - 1,
                                                1 << 63, (1 << 64) - 2, (1 << 64) - 1))  # fmt: skip
        elif kind == 3:
            index[row, column] += np.uint64(chance.choice((1, 2, 16, 1000)))
        elif kind == 4:
            index[row, column] -= np.uint64(chance.choice((1, 2, 16)))
        else:
            index[:] = index[::-1].copy()
    body = index.tobytes()
    file.write_bytes(data[:-size] + body + int(google_crc32c.value(body)).to_bytes(4, "little"))
    return f"{file.relative_to(path)}: index"


def _inner(folder: Path) -> list[int] | None:
    """Shape of the chunks inside the shards of an array; None if it has none."""
    document = load(folder / "zarr.json")
    try:
        codec = document["codecs"][0]
        sizes = codec["configuration"]["chunk_shape"] if codec["name"] == "sharding_indexed" else None
        outer = document["chunk_grid"]["configuration"]["chunk_shape"]
        whole = (
            sizes and len(sizes) == len(outer) and all(a > 0 and b % a == 0 for a, b in zip(sizes, outer, strict=True))
        )
    except (KeyError, TypeError, IndexError):
        return None
    return list(sizes) if sizes and whole else None


def values(path: Path, chance: Chance) -> str:
    """Numbers or texts that are well encoded and wrong."""
    folder = chance.choice(arrays_of(chance.choice(folder_of(path))))
    target: Any = zarr.open_array(folder, mode="r+")
    if 0 in target.shape:
        return "nothing"
    start = [chance.randrange(size) for size in target.shape]
    part = tuple(slice(at, at + chance.choice((1, 1, 5, 10**6))) for at in start)
    kind = target.dtype.kind
    if kind in "TOU":
        new: Any = chance.choice(
            ("", "\x1b[2J", "\x07", "a" * 70000, "\u202e", "<b>", "$$", "<E4>", "\ufffd", "../x", "\0")
        )
    elif kind == "f":
        new = chance.choice((-1.0, 0.0, 0.5, 1.0, 2.0, 65504.0, float("nan"), float("inf"), float("-inf")))
    elif kind == "b":
        new = chance.random() < 0.5
    else:
        high = np.iinfo(target.dtype)
        new = chance.choice([one for one in (-7, -1, 0, 1, 3, 49, 50, 255, 1 << 30, high.max, high.min)
                             if high.min <= one <= high.max])  # fmt: skip
    target[part] = new
    return f"{folder.parent.name}/{folder.name}{[(one.start, one.stop) for one in part]} = {str(new)[:20]!r}"


def files(path: Path, chance: Chance) -> str:
    """Files that are gone, cut, exchanged, or something else than files."""
    documents = [file for file in sorted(path.rglob("zarr.json")) if file.is_file() and not file.is_symlink()]
    found = chunks_of(path) + documents
    file, kind = chance.choice(found), chance.randrange(12)
    same = [one for one in found if one.name == file.name and one != file and one.is_file()] or found
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size + 1)])
    elif kind in (2, 3):
        partner = chance.choice(same)
        one, two = file.read_bytes(), partner.read_bytes()
        file.write_bytes(two)
        partner.write_bytes(one)
        return f"{file.relative_to(path)} and {partner.relative_to(path)} have changed places"
    elif kind == 4:
        data = bytearray(file.read_bytes() or b"\0")
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
    elif kind == 5:
        file.write_bytes(file.read_bytes() + bytes(chance.randrange(1, 40)))
    elif kind == 6:
        file.unlink()
        file.mkdir()
    elif kind == 7:
        file.unlink()
        os.mkfifo(file)
    elif kind == 8:
        target = chance.choice(("missing", file.name, str(path.parent / "outside"), "/dev/null", "..", str(same[0])))
        file.unlink()
        file.symlink_to(target)
    elif kind == 9:
        file.unlink()
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(file.parent):
            made.bind(file.name)
    elif kind == 10:
        extra = chance.choice(
            ("x", "token/x", "c/0", "token/c/1", "zarr.json.partial", "x.partial", "0000", "y/zarr.json")
        )
        made_at = chance.choice((path, *folder_of(path))) / extra
        with contextlib.suppress(OSError):
            made_at.parent.mkdir(parents=True, exist_ok=True)
            made_at.write_bytes(b"{}")
        return f"also {made_at.relative_to(path)}"
    else:
        folders = folder_of(path)
        folder = chance.choice(arrays_of(chance.choice(folders)))
        partner_folder = chance.choice(arrays_of(chance.choice(folders)))
        if folder != partner_folder:
            folder.rename(path / "between")
            partner_folder.rename(folder)
            (path / "between").rename(partner_folder)
        return f"{folder.relative_to(path)} and {partner_folder.relative_to(path)} have changed places"
    return f"{file.relative_to(path)}: file, kind {kind}"


KINDS: tuple[tuple[Callable[[Path, Chance], str], int], ...] = (
    (root, 3), (capture, 6), (array, 7), (manifest, 2), (front, 2), (digests, 2), (shard, 3), (values, 3), (files, 4),
)  # fmt: skip


def damage(path: Path, chance: Chance) -> list[str]:
    """One to three changes; what they were."""
    done = []
    kinds, weights = zip(*KINDS, strict=True)
    chosen = chance.choices(kinds, weights, k=chance.choice((1, 1, 1, 1, 2, 3)))
    for kind in sorted(chosen, key=lambda kind: kind is files):  # last, since pipes and links are not for the others
        try:
            done.append(kind(path, chance))
        except Exception as error:  # noqa: BLE001 - zarr cannot open what earlier damage left
            done.append(f"nothing ({type(error).__name__})")
    return done


def reseal(path: Path, chance: Chance) -> None:
    """Make the proofs anew, as far as there is something to prove: digests of chunks, manifest, front, metadata, index.

    Each only mostly, so that damage to a proof is now and then vouched for by the proofs above it.
    """
    for folder in folder_of(path) if path.is_dir() else []:
        if chance.random() < 0.6:
            with contextlib.suppress(Exception):
                _chunk_digests(folder)
        if chance.random() < 0.7:
            with contextlib.suppress(Exception):
                names = [file for file in sorted(folder.rglob("*")) if file.is_file() and _covered(folder, file)]
                hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in names]
                texts = [file.relative_to(folder).as_posix() for file in names]
                rewrite(folder / "manifest_file", np.asarray(texts, np.dtypes.StringDType()))
                rewrite(folder / "manifest_sha256", np.asarray(hashes, np.dtypes.StringDType()))
        document = load(folder / "zarr.json")
        with contextlib.suppress(Exception):
            ours = document["attributes"]["attnlens"]
            with contextlib.suppress(Exception):
                listed = [_open(folder / name)[:] for name in ("manifest_file", "manifest_sha256")]
                pairs = zip(*([str(text) for text in values] for values in listed), strict=True)
                lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(dict(pairs).items()))
                ours["manifest"] = hashlib.sha256(lines.encode()).hexdigest()
            if (folder / "manifest_file/front.bin").is_file():
                ours["front"] = hashlib.sha256((folder / "manifest_file/front.bin").read_bytes()).hexdigest()
            ours["digest"] = _canonical(document)
            save(folder / "zarr.json", document)
    if chance.random() < 0.8:
        with contextlib.suppress(Exception):
            document = load(path / "zarr.json")
            for entry in document["attributes"]["attnlens"].get("index") or []:
                with contextlib.suppress(Exception):
                    about = load(path / entry["id"] / "zarr.json")["attributes"]["attnlens"]
                    entry |= {key: about[key] for key in entry if key in about}
            document.pop("consolidated_metadata", None)
            document["attributes"]["attnlens"]["digest"] = _canonical(document)
            save(path / "zarr.json", document)


def _covered(folder: Path, file: Path) -> bool:
    inside = file.relative_to(folder).as_posix()
    own = inside == "zarr.json" or inside.startswith(("manifest_file/", "manifest_sha256/"))
    return not own and not inside.endswith(".partial") and not file.is_symlink()


def _canonical(document: Any) -> str:
    attributes = dict(document["attributes"])
    attributes["attnlens"] = {key: value for key, value in attributes["attnlens"].items() if key != "digest"}
    text = json.dumps({**document, "attributes": attributes}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _chunk_digests(folder: Path) -> None:
    """Sha256 of every chunk of the arrays that the attribute tells of, by docs/format.md."""
    about = load(folder / "chunk_sha256/zarr.json")["attributes"]["attnlens"]["arrays"]
    table = _open(folder / "chunk_sha256")[:]
    for name, part in about.items():
        inner = _inner(folder / name)
        outer = load(folder / name / "zarr.json")["chunk_grid"]["configuration"]["chunk_shape"]
        inside = [a // b for a, b in zip(outer, inner or outer, strict=True)]
        strides, step = [0] * len(part["grid"]), 1
        for axis in reversed(part["order"]):
            strides[axis], step = step, step * part["grid"][axis]
        for file in chunks_of(folder / name):
            data = file.read_bytes()
            at = [int(one) for one in file.relative_to(folder / name / "c").parts]
            index = np.frombuffer(data[-(int(np.prod(inside)) * 16 + 4) : -4], "<u8").reshape(-1, 2).tolist()
            for number, (start, size) in zip(np.ndindex(*inside), index, strict=True):
                cell = part["first"] + sum(
                    (shard * count + place) * stride
                    for shard, count, place, stride in zip(at, inside, number, strides, strict=True)
                )
                absent = start == (1 << 64) - 1
                made = bytes(32) if absent else hashlib.sha256(data[start : start + size]).digest()
                table[cell] = np.frombuffer(made, np.uint8)
    rewrite(folder / "chunk_sha256", table)


CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
END = struct.Struct("<4s4H2LH")
FIELDS = ("signature", "made", "needed", "flags", "method", "time", "date", "crc", "packed", "size", "names", "extra",
          "comment", "disk", "internal", "external", "offset")  # fmt: skip


def zipped(path: Path, target: Path) -> None:
    """The files of a folder in a zip, without compression, as any program may make it."""
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file() and (not file.is_symlink() or file.exists()) and file.stat().st_size < 1 << 26:
                archive.writestr(zipfile.ZipInfo(file.relative_to(path).as_posix()), file.read_bytes())


def zip_directory(target: Path, chance: Chance) -> str:
    """One change to the table of contents of a zip, to the header before an entry, or to the end."""
    data = target.read_bytes()
    at = data.rfind(b"PK\x05\x06")
    end = list(END.unpack_from(data, at))
    tail = data[at + END.size :]
    start, place = end[6], end[6]
    entries: list[list[Any]] = []
    while data[place : place + 4] == b"PK\x01\x02":
        head = list(CENTRAL.unpack_from(data, place))
        length = CENTRAL.size + head[10] + head[11] + head[12]
        entries.append([head, data[place + CENTRAL.size : place + CENTRAL.size + head[10]],
                        data[place + CENTRAL.size + head[10] : place + length]])  # fmt: skip
        place += length
    body = bytearray(data[:start])
    one, kind = chance.choice(entries), chance.randrange(10)
    head, said, extra_end = one[0], f"kind {kind}", b""
    if kind < 3:
        field = chance.choice(
            ("flags", "method", "crc", "packed", "size", "offset", "needed", "disk", "external", "made")
        )
        number = FIELDS.index(field)
        wide = field in ("crc", "packed", "size", "external", "offset")
        most = 0xFFFFFFFF if wide else 0xFFFF
        head[number] = chance.choice((0, 1, 8, 99, most, most - 1, head[number] ^ 1, min(most, head[number] + 1),
                                      max(0, head[number] - 1), chance.choice(entries)[0][number],
                                      0o120777 << 16 if wide else 8))  # fmt: skip
        if field == "size" and chance.random() < 0.7:
            head[FIELDS.index("packed")] = head[number]
        said = f"{one[1][:80]!r}: {field} {head[number]}"
    elif kind == 3:
        new = chance.choice((b"../x", b"/x", b"a\\b", b"", b".", b"a//b", b"zarr.json", b"\xff\xfe", b"a\0b", b"C:/x",
                             chance.choice(entries)[1], one[1].upper(), b"x" * 60000))  # fmt: skip
        one[1], head[10] = new, len(new)
        said = f"name {new[:40]!r}"
    elif kind == 4:
        entries.append([list(head), one[1], one[2]])
        said = f"{one[1]!r} twice"
    elif kind == 5:
        sizes = b"".join(struct.pack("<Q", chance.choice((0, 1, 1 << 40, (1 << 64) - 1, head[9]))) for _ in range(3))
        one[2] = (
            struct.pack("<2H", 1, chance.choice((24, 16, 8, 0, 60))) + sizes[: chance.choice((24, 16, 8, 0))] + one[2]
        )
        head[11] = len(one[2])
        for field in chance.sample(("packed", "size", "offset"), chance.randrange(4)):
            head[FIELDS.index(field)] = 0xFFFFFFFF
        said = f"zip64 of {one[1]!r}"
    elif kind == 6:
        entries.remove(one)
        said = f"without {one[1]!r}"
    elif kind == 7:
        number = chance.randrange(1, 8)
        end[number] = chance.choice((0, 1, 0xFFFF, 0xFFFF if number != 5 else 0xFFFFFFFF, end[number] + 1))
        said = f"end, field {number}: {end[number]}"
    elif kind == 8:
        place = head[FIELDS.index("offset")]
        local = list(LOCAL.unpack_from(body, place))
        number = chance.choice((0, 2, 3, 7, 8, 9, 10))
        local[number] = b"PK\x03\x05" if number == 0 else chance.choice((0, 1, 8, 0xFFFF, int(local[number]) + 1))
        with contextlib.suppress(struct.error):
            body[place : place + LOCAL.size] = LOCAL.pack(*local)
        said = f"header of {one[1]!r}, field {number}"
    else:
        count, length = len(entries), chance.choice((1 << 40, 1 << 63, 0))
        extra_end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
        extra_end += struct.pack("<4sLQL", b"PK\x06\x07", 0, chance.choice((len(data), 0, 1 << 62)), 1)
        end[5] = 0xFFFFFFFF
    with contextlib.suppress(struct.error):
        listed = b"".join(CENTRAL.pack(*head) + name + rest for head, name, rest in entries)
        if kind not in (7, 9):
            end[3], end[4], end[5] = len(entries), len(entries), len(listed)
        target.write_bytes(bytes(body) + listed + extra_end + END.pack(*end) + tail)
    return f"zip: {said}"
