"""Stores behind URLs: a web server with and without ranges, one that fails, and a real S3 server, all on loopback."""

from __future__ import annotations

import io
import os
import random
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import attnlens
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import AttnlensError, InputError, StoreError
from attnlens.store.info import describe
from attnlens.store.places import cache, far, fetch
from attnlens.store.places.fetch import traffic
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.verify import verify
from store_sample import Sample, tree_hash
from store_server import Served, serve

pytest.importorskip("obstore", reason="reading URLs is the extra `remote`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.zarr, larger than what is fetched at once, and run.zarr.zip."""
    path = tmp_path_factory.mktemp("served")
    Sample(n_prompt=150, n_generated=30, n_layer=6, n_head=4, top_k=5, vocabulary_size=200).write(path / "run.zarr")
    pack(path / "run.zarr")
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache from one test to the next, no long waits."""
    monkeypatch.setenv("ATTNLENS_CACHE", "")
    monkeypatch.setattr(far, "_opened", {})
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.01)


@pytest.fixture
def server(folder: Path) -> Iterator[Served]:
    with serve(Served(folder)) as served:
        yield served


@pytest.fixture(scope="module")
def drawn(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("drawn")
    render(folder / "run.zarr", path, options=SOME)
    return tree_hash(path)


SOME = RenderOptions(queries="150,160,176:", window=24, step=24)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["run.zarr.zip", "run.zarr"])
def test_a_url_is_drawn_as_the_store_it_names(
    folder: Path, drawn: str, tmp_path: Path, name: str, ranges: bool
) -> None:
    with serve(Served(folder, ranges=ranges)) as served:
        report = render(f"{served.url}/{name}", tmp_path / "p", options=SOME)
        assert tree_hash(tmp_path / "p") == drawn
        assert report.requests >= len(served.log)
        assert 0 < report.fetched_bytes <= served.bytes
        if ranges:
            assert served.bytes < 0.5 * (folder / "run.zarr.zip").stat().st_size


@pytest.mark.parametrize("name", ["run.zarr.zip", "run.zarr"])
def test_with_faults_on_a_fifth_of_requests_the_bytes_are_the_same(
    folder: Path, drawn: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 1.0)
    kinds: set[str] = set()
    for seed in range(6):
        monkeypatch.setattr(far, "_opened", {})
        with serve(Served(folder, faults=0.2, slow_s=1.5, chance=random.Random(seed))) as served:
            render(f"{served.url}/{name}", tmp_path / f"p{seed}", options=SOME)
            assert tree_hash(tmp_path / f"p{seed}") == drawn
            kinds |= set(served.failed)
    assert len(kinds) >= (2 if name.endswith("zip") else 3)  # a packed store is asked for a few times only


def test_a_server_that_always_fails_is_said_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ATTEMPTS", 3)
    with (
        serve(Served(folder, faults=1.0, kinds=("error",))) as served,
        pytest.raises(StoreError, match=r"run\.zarr\.zip cannot be read \(.*50[023]|429") as caught,
    ):
        attnlens.open(f"{served.url}/run.zarr.zip")
    assert "\n" not in str(caught.value)
    assert len(served.failed) == 3


def test_the_first_picture_takes_few_requests(folder: Path, server: Served, tmp_path: Path) -> None:
    render(f"{server.url}/run.zarr.zip", tmp_path, options=RenderOptions(queries="150", window=200))
    assert len(server.log) <= 6
    assert {wanted is not None for _, wanted, _ in server.log} == {True}


def test_every_reading_command_takes_a_url(folder: Path, server: Served, tmp_path: Path) -> None:
    url, plain = f"{server.url}/run.zarr.zip", folder / "run.zarr"
    assert verify(url).problems == []
    assert {**describe(url).to_json(), "path": ""} == {**describe(plain).to_json(), "path": ""}
    capture, there = attnlens.open(url)[0], attnlens.open(plain)[0]
    np.testing.assert_array_equal(capture.attention.rows([3, 170]), there.attention.rows([3, 170]))
    assert capture["lens_entropy"].far
    lite = crop(url, tmp_path / "lite.zarr", keep=Keep(lite=True)).path
    assert verify(lite).problems == []
    assert tree_hash(unpack(url, tmp_path / "all.zarr").path) == tree_hash(plain)
    assert pack(f"file://{plain}", tmp_path / "f.zarr.zip").files == len(list(plain.rglob("*.*"))) + len(
        [path for path in plain.rglob("c/**/*") if path.is_file()]
    )


def test_a_folder_on_a_plain_web_server_is_described_but_not_checked(server: Served, folder: Path) -> None:
    found = describe(f"{server.url}/run.zarr")
    assert (found.files, found.captures[0].n_token) == (0, 180)
    with pytest.raises(StoreError, match="cannot list files"):
        verify(f"{server.url}/run.zarr")


def test_what_was_fetched_is_kept_on_disk(
    folder: Path, server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: str
) -> None:
    monkeypatch.setenv("ATTNLENS_CACHE", str(tmp_path / "cache"))
    render(f"{server.url}/run.zarr.zip", tmp_path / "a", options=SOME)
    first = server.bytes
    server.log.clear()
    monkeypatch.setattr(far, "_opened", {})
    render(f"{server.url}/run.zarr.zip", tmp_path / "b", options=SOME)
    assert tree_hash(tmp_path / "b") == drawn
    assert len(server.log) == 1  # the end of the file, which says whether it is still the same
    assert server.bytes < first
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.write_bytes(b"rotten" + file.read_bytes())
    monkeypatch.setattr(far, "_opened", {})
    render(f"{server.url}/run.zarr.zip", tmp_path / "c", options=SOME)
    assert tree_hash(tmp_path / "c") == drawn


def zip_of(seed: int) -> bytes:
    """A zip of two files; that of another seed is as long, and all in it lies at the same places."""
    chance, data = random.Random(seed), io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, size in (("large", 300_000), ("small", 40_000), ("zarr.json", 200_000)):
            archive.writestr(zipfile.ZipInfo(name), chance.randbytes(size))
    return data.getvalue()


SAME_TIME = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


@pytest.mark.parametrize(
    ("headers", "tail"),
    [
        ({}, far.TAIL),
        ({}, 4096),
        ({}, 16),  # so that the table of contents does not come with the end
        (SAME_TIME, far.TAIL),
        ({"ETag": 'W/"1"', **SAME_TIME}, far.TAIL),
        ({"ETag": '"1"'}, far.TAIL),  # made of size and time, as some servers do
    ],
)
def test_another_file_of_the_same_size_and_time_is_never_taken_from_the_cache(
    headers: dict[str, str], tail: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "TAIL", tail)
    monkeypatch.setenv("ATTNLENS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "run.zarr.zip"
    with serve(Served(tmp_path, headers=lambda _: headers)) as served:
        for seed in (3, 4):
            file.write_bytes(zip_of(seed))
            with zipfile.ZipFile(file) as archive:
                large, small = archive.read("large"), archive.read("small")
            for _ in range(2):
                before = served.bytes
                place = far.FarArchive(f"{served.url}/run.zarr.zip")
                assert place.read("small") == small
                assert place.read("large", 1000, 120_000) == large[1000:120_000]
                assert place.read("large", 1000, 120_000) == large[1000:120_000]
            assert served.bytes - before <= 150_000  # the end and the table of contents, the rest is in the cache


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.zarr.zip"
    file.write_bytes((folder / "run.zarr.zip").read_bytes())
    with serve(Served(tmp_path)) as served:
        capture = attnlens.open(f"{served.url}/run.zarr.zip")[0]
        capture.token_id  # noqa: B018
        os.utime(file, ns=(1, 1))  # another entity tag
        with pytest.raises(StoreError, match="was replaced by another file while it was read: open it again"):
            capture.attention.rows([3])
        assert len(served.log) < 8


def test_the_cache_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "DISK", 5000)
    for number in range(12):
        monkeypatch.setattr(cache, "_tidied", [0.0])
        cache.Parts(lambda start, stop: bytes(stop - start), f"file {number}").get(0, 1000)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 5000


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://host/run.zarr.zip?signature=1", "has no query"),
        ("https://me:secret@host/run.zarr", "leave name and password out"),
        ("https://", "is not understood"),
        ("hf://owner", r"expected hf://OWNER/NAME\[/PATH\]\[@REVISION\]"),
    ],
)
def test_urls_that_are_not_understood(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        attnlens.open(url)
    assert "secret" not in str(caught.value)


def test_what_is_not_there_is_said(server: Served) -> None:
    with pytest.raises(StoreError, match="no such store"):
        attnlens.open(f"{server.url}/none.zarr.zip")
    with pytest.raises(StoreError, match=r"it has no zarr\.json"):
        attnlens.open(f"{server.url}/none.zarr")


def test_hf_names_are_files_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "datasets/me/stores/resolve/v1/deep"
    place.mkdir(parents=True)
    (place / "run.zarr.zip").write_bytes((folder / "run.zarr.zip").read_bytes())
    with serve(Served(tmp_path)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        assert attnlens.open("hf://datasets/me/stores@v1/deep/run.zarr.zip").ids == ["0000"]


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(AttnlensError, match=r"attnlens\[remote\]"):
        attnlens.open("https://host/run.zarr.zip")


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server_module = pytest.importorskip("moto.server")
        boto3 = pytest.importorskip("boto3")
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1",
                              aws_access_key_id="a", aws_secret_access_key="b")  # fmt: skip
        client.create_bucket(Bucket="stores")
        for file in folder.rglob("*"):
            if file.is_file():
                client.put_object(Bucket="stores", Key=f"x/{file.relative_to(folder)}", Body=file.read_bytes())
    yield endpoint
    server.stop()


@pytest.mark.parametrize("name", ["run.zarr.zip", "run.zarr"])
def test_s3(s3: str, drawn: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                       "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    before = traffic.bytes
    render(f"s3://stores/x/{name}", tmp_path / "p", options=SOME)
    assert tree_hash(tmp_path / "p") == drawn
    assert traffic.bytes > before
    assert verify(f"s3://stores/x/{name}").problems == []
