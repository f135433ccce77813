"""The front of a capture: few requests for a folder far away, never another content than the files, no trust in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnlens
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import StoreError
from attnlens.store.front import End, decode, encode
from attnlens.store.places import far, fetch
from attnlens.store.tools.crop import crop
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.hdf5_import import import_hdf5
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.merge import merge
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.tools.seal import seal
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample, tree_hash
from store_server import Served, serve

pytest.importorskip("obstore", reason="reading URLs is the extra `remote`")

FRONT = "0000/manifest_file/front.bin"
ARCHIVED = Path(__file__).parent / "stores" / "format-1.zarr"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNLENS_CACHE", "")
    monkeypatch.setattr(far, "_opened", {})
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    Sample(n_prompt=70, n_generated=4, n_layer=2).write(path)
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run.zarr"))


def drawn(store: str | Path, folder: Path, options: RenderOptions | None = None) -> str:
    render(store, folder, options=options or RenderOptions(queries="70"))
    return tree_hash(folder)


def document(path: Path) -> Any:
    return json.loads((path / "zarr.json").read_text())


def parsed(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A front as docs/format.md tells it, without the code of the project."""
    head, _, rest = data.partition(b"\n")
    found = {}
    for path, size, length in json.loads(head):
        found[path], rest = (size, rest[:length]), rest[length:]
    assert rest == b""
    assert list(found) == sorted(found)
    return found


def agrees(capture: Path) -> set[str]:
    """The files that a capture's front knows, each as it is on the disk, and of which its zarr.json tells."""
    data = (capture / "manifest_file/front.bin").read_bytes()
    assert document(capture)["attributes"]["attnlens"]["front"] == hashlib.sha256(data).hexdigest()
    ends = parsed(data)
    for path, (size, end) in ends.items():
        on_disk = (capture / path).read_bytes()
        assert (size, end) == (len(on_disk), on_disk[len(on_disk) - len(end) :]), path
    return set(ends)


@pytest.mark.parametrize(
    "sample",
    [
        Sample(n_prompt=300, n_generated=70, n_layer=12, n_head=2, top_k=5, vocabulary_size=300),
        Sample(n_prompt=40, n_generated=500, n_layer=24, n_head=1, top_k=5, vocabulary_size=40, seed=1),
        Sample(n_prompt=9, n_generated=3, n_layer=3, vocabulary_size=9, seed=2, none_layers=(1,)),
    ],
    ids=["wide", "long", "tiny"],
)
def test_a_folder_far_away_takes_few_requests(sample: Sample, tmp_path: Path) -> None:
    store, first = tmp_path / "run.zarr", sample.n_prompt
    sample.write(store)
    lists = {name for name in agrees(store / "0000") if name.endswith("/c/0")}
    assert {f"{name}/c/0" for name in ("token_id", "token_text", "vocabulary_text", "manifest_sha256")} <= lists
    for number, options in enumerate(
        (RenderOptions(queries=f"{first}", tokens=f"0:{min(32, first)}"), RenderOptions(queries=f"{first}"))
    ):
        far._opened.clear()
        with serve(Served(tmp_path)) as served:
            there = drawn(f"{served.url}/run.zarr", tmp_path / f"there{number}", options)
        assert len(served.log) <= 6, served.log
        assert served.bytes <= 300_000, served.log
        assert there == drawn(store, tmp_path / f"here{number}", options)


def test_captures_beside_it_do_not_cost_more(store: Path, tmp_path: Path) -> None:
    writer = StoreWriter.create(store, append=True)
    for seed in range(9):
        Sample(n_layer=2, seed=seed).write(writer)
    assert "consolidated_metadata" not in document(store)
    far._opened.clear()
    with serve(Served(tmp_path)) as served:
        attnlens.open(f"{served.url}/run.zarr")[0].vocabulary  # noqa: B018
    asked = [path.removeprefix("/run.zarr/") for path, _, _ in served.log]
    assert asked == ["zarr.json", "0000/zarr.json", FRONT]


def _crop(store: Path, out: Path) -> Path:
    return crop(store, out, keep=Keep(tokens="5:60", lite=True)).path


def _redact(store: Path, out: Path) -> Path:
    return crop(store, out, redact=["12:15"]).path


def _merge(store: Path, out: Path) -> Path:
    return merge([ARCHIVED, store], out).path


def _packed(store: Path, out: Path) -> Path:
    return unpack(pack(store, out.with_suffix(".zarr.zip")).path, out).path


def _hdf5(store: Path, out: Path) -> Path:
    export_hdf5(store, out.with_suffix(".h5"))
    return import_hdf5(out.with_suffix(".h5"), out).path


@pytest.mark.parametrize("tool", [_crop, _redact, _merge, _packed, _hdf5])
def test_whatever_makes_a_capture_makes_its_front(
    store: Path, tmp_path: Path, tool: Callable[[Path, Path], Path]
) -> None:
    made = tool(store, tmp_path / "made.zarr")
    last = sorted(path for path in made.iterdir() if path.is_dir())[-1]
    assert {"token_id/c/0", "token_bytes/c/0", "vocabulary_text/c/0"} <= agrees(last)
    assert verify(made).problems == []


def test_a_capture_that_ended_early_has_none(tmp_path: Path) -> None:
    store, sample = tmp_path / "run.zarr", Sample(n_generated=6)
    with StoreWriter.create(store).capture(sample.metadata(), capacity=20) as out:
        sample.prompt(out)
        sample.step(out, sample.n_prompt)
        out.fail("the power went")
    assert not list(store.rglob("front.bin"))
    assert not list(crop(store, tmp_path / "less.zarr").path.rglob("front.bin"))


@pytest.mark.parametrize("damage", ["gone", "byte", "other", "lie", "size", "foreign"])
def test_verify_finds_what_is_wrong_with_it_and_it_is_not_drawn(store: Path, tmp_path: Path, damage: str) -> None:
    front = store / FRONT
    data = front.read_bytes()
    if damage == "gone":
        front.unlink()
    elif damage == "byte":
        front.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "other":
        front.write_bytes(encode({}))
    else:
        ends = decode(data)
        size, text = ends["token_text/c/0"].size, ends["token_id/c/0"].data
        ends[{"lie": "token_text/c/0", "size": "token_text/c/0", "foreign": "../0001/x"}[damage]] = {
            "lie": End(len(text), text), "size": End(size + 1, ends["token_text/c/0"].data), "foreign": End(4, b"evil"),
        }[damage]  # fmt: skip
        stated(store, encode(ends))
    assert FRONT in {problem.where for problem in verify(store).problems}
    right = drawn(store, tmp_path / "right")
    with serve(Served(tmp_path)) as served:
        if damage in ("lie", "size"):
            with pytest.raises(StoreError, match="token_text: chunk c/0 is damaged"):
                drawn(f"{served.url}/run.zarr", tmp_path / "there")
        else:
            assert drawn(f"{served.url}/run.zarr", tmp_path / "there") == right


def stated(store: Path, data: bytes) -> None:
    """Put a front into a store as if it were the one that was made."""
    from attnlens.store.manifest import document_digest
    from attnlens.store.tools.seal import seal_store

    (store / FRONT).write_bytes(data)
    text = document(store / "0000")
    text["attributes"]["attnlens"]["front"] = hashlib.sha256(data).hexdigest()
    text["attributes"]["attnlens"]["digest"] = document_digest(text)
    (store / "0000/zarr.json").write_text(json.dumps(text))
    seal_store(store, attnlens.open(store).metadata)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}\n",
        b"[" * 100_000,
        b'[["token_id/c/0", 1e300, 0]]\n',
        b'[["token_id/c/0", 99999999999999999999, 0]]\n',
        b'[["token_id/c/0", 10, -3]]\n',
        b'[["a", 1, 1], ["a", 1, 1]]\nxx',
        b'[["token_id/c/0", 3, 3]]\nxx',
        b"[]\n" + bytes(2 << 20),
    ],
)
def test_a_hostile_front_is_left_alone(store: Path, tmp_path: Path, data: bytes) -> None:
    stated(store, data)
    assert FRONT in {problem.where for problem in verify(store).problems}
    with serve(Served(tmp_path)) as served:
        there, here = attnlens.open(f"{served.url}/run.zarr")[0], attnlens.open(store)[0]
        assert (there.token_text, there.vocabulary) == (here.token_text, here.vocabulary)


def test_a_size_that_is_a_lie_is_an_error_of_one_line(store: Path, tmp_path: Path) -> None:
    stated(store, encode({"token_id/c/0": End(1 << 52, b""), "lens_token/c/0/0/0": End(1 << 40, b"\0" * 20)}))
    with serve(Served(tmp_path)) as served, pytest.raises(StoreError) as caught:
        drawn(f"{served.url}/run.zarr", tmp_path / "there")
    assert "\n" not in str(caught.value)


def test_an_older_store_has_none(tmp_path: Path) -> None:
    assert verify(ARCHIVED).problems == []
    assert not list(ARCHIVED.rglob("front.bin"))
    with serve(Served(ARCHIVED.parent)) as served:
        assert attnlens.open(f"{served.url}/{ARCHIVED.name}")[0].token_text == attnlens.open(ARCHIVED)[0].token_text


@pytest.mark.parametrize("without", ["nothing", "index", "copies"])
def test_the_store_s_own_metadata_may_be_older_than_a_capture(store: Path, tmp_path: Path, without: str) -> None:
    before = document(store)
    shutil.rmtree(store)
    Sample(n_prompt=70, n_generated=4, n_layer=2, seed=5).write(store)
    if without == "index":
        before["attributes"]["attnlens"]["index"] = None
    elif without == "copies":
        del before["consolidated_metadata"]
    (store / "zarr.json").write_text(json.dumps(before))
    with serve(Served(tmp_path)) as served:
        assert attnlens.open(f"{served.url}/run.zarr")[0].token_id.tolist() == attnlens.open(store)[0].token_id.tolist()
        assert drawn(f"{served.url}/run.zarr", tmp_path / "there") == drawn(store, tmp_path / "here")


def test_sealing_again_makes_the_same(store: Path) -> None:
    before = (store / FRONT).read_bytes()
    seal(store, "0000")
    assert (store / FRONT).read_bytes() == before


ENDS = st.builds(lambda data, more: End(len(data) + more, data), st.binary(max_size=40), st.integers(0, 1 << 40))


@given(st.dictionaries(st.text(max_size=9), ENDS, max_size=6))
def test_a_front_is_read_as_it_was_written(ends: dict[str, End]) -> None:
    assert decode(encode(ends)) == ends
    assert parsed(encode(ends)) == {path: (end.size, end.data) for path, end in ends.items()}


@given(st.dictionaries(st.sampled_from("abc"), ENDS, max_size=3), st.data())
def test_no_byte_of_a_front_may_be_another_and_mean_the_same(ends: dict[str, End], data: st.DataObject) -> None:
    front = bytearray(encode(ends))
    at = data.draw(st.integers(0, len(front) - 1))
    front[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(front))
    except ValueError:
        return
    assert found != ends
