"""What the writer wrote, read back by plain zarr-python and xarray, and by our reader."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.schemas.arrays import ARRAY
from attnlens.schemas.errors import AbsentError, InputError, StoreError
from attnlens.store.commit import CaptureFile
from attnlens.store.writer import CaptureWriter, StoreWriter
from store_sample import Sample, tree_hash

LAYERS_FIRST = {"key_rows_hold": 0}


def assert_plain_zarr(path: Path, sample: Sample) -> None:
    group = zarr.open_group(path, path=sample.name, mode="r")
    expected = sample.expected()
    assert {"manifest_file", "manifest_sha256", *expected} == set(group.array_keys())
    for name, values in expected.items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        found: Any = array[...]
        assert array.shape == values.shape, name
        assert array.metadata.dimension_names == ARRAY[name].axes  # type: ignore[union-attr]
        assert array.attrs["attnlens"] == {"unit": ARRAY[name].unit, "meaning": ARRAY[name].meaning}
        if ARRAY[name].dtype == "string":
            assert list(map(str, found)) == list(values)
        else:
            assert array.dtype == np.dtype(ARRAY[name].dtype)
            np.testing.assert_array_equal(found, values, err_msg=name)


@pytest.mark.parametrize("options", [{}, LAYERS_FIRST], ids=["rows", "layers"])
def test_plain_zarr_reads_every_array(tmp_path: Path, options: dict[str, Any]) -> None:
    sample = Sample(n_prompt=21, n_generated=12, none_layers=(1,), sliding={2: 5})
    sample.write(tmp_path / "run.zarr", **options)
    assert_plain_zarr(tmp_path / "run.zarr", sample)
    assert not list((tmp_path / "run.zarr").rglob("*.partial"))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_in_any_blocks(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    sample = Sample(
        n_prompt=draw(st.integers(1, 80)),
        n_generated=draw(st.integers(1, 20)),
        n_layer=draw(st.integers(1, 3)),
        n_head=draw(st.integers(1, 3)),
        top_k=draw(st.integers(1, 4)),
        sliding=draw(st.sampled_from([{}, {0: 3}])),
        feed_all=draw(st.booleans()),
        lens=draw(st.booleans()),
        attention=draw(st.booleans()),
    )
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
    sample.write(
        path,
        capacity=sample.n_token + draw(st.sampled_from([0, 1, 100])),
        block=draw(st.integers(1, 90)),
        key_rows_hold=draw(st.sampled_from([0, 1 << 26])),
        buffer_bytes=draw(st.sampled_from([1, 1 << 12, 1 << 26])),
    )
    assert_plain_zarr(path, sample)
    capture = attnlens.open(path)[0]
    if sample.attention:
        rows = capture.attention.rows(slice(0, sample.n_fed))
        np.testing.assert_array_equal(rows, sample.weights[:, :, : sample.n_fed].astype(np.float32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sample]:
    sample = Sample(n_prompt=9, n_generated=6, none_layers=(1,))
    path = tmp_path_factory.mktemp("made") / "run.zarr"
    sample.write(path)
    return path, sample


def test_xarray_opens_it_with_coordinates(made: tuple[Path, Sample]) -> None:
    path, sample = made
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(path, group="0000")
        row = data.attention_weight.sel(layer=2, query=10).values
        assert list(data.token_text.values) == sample.texts
    assert {"token_text", "token_special", "layer", "depth", "query", "key"} <= set(data.coords)
    np.testing.assert_array_equal(row, sample.weights[2, :, 10])


def test_reader(made: tuple[Path, Sample]) -> None:
    path, sample = made
    store = attnlens.open(path)
    capture = store["0000"]
    assert [c.id for c in store] == store.ids == ["0000"]
    assert len(store) == 1
    assert store[-1] is capture
    assert (capture.n_prompt, capture.n_token, capture.n_fed, capture.committed) == (9, 15, 14, 14)
    assert capture.status == "complete"
    assert capture.metadata.completion == "Alice."
    assert capture.token_text == sample.texts
    assert [capture.token_bytes(t) for t in range(15)] == sample.raw
    assert capture.token_special.tolist() == sample.special
    assert capture.vocabulary[7] == "v7"
    lens = capture["lens_token"]
    assert (lens.name, lens.axes, lens.shape, lens.dtype) == (
        "lens_token",
        ("depth", "token", "rank"),
        (4, 15, 3),
        np.dtype("int32"),
    )
    assert lens.unit == "vocabulary id"
    expected = sample.expected()["lens_token"]
    np.testing.assert_array_equal(lens[...], expected)
    np.testing.assert_array_equal(lens.isel(depth=2, token=slice(3, 9, 2)), expected[2, 3:9:2])
    np.testing.assert_array_equal(lens.sel(depth=[3, 1], rank=0), expected[[3, 1], :, 0])
    np.testing.assert_array_equal(lens.sel(token=slice(3, 5), depth=0), expected[0, 3:6])
    np.testing.assert_array_equal(lens[1, ..., -1], expected[1, :, -1])


def test_numpy_makes_arrays_of_them(made: tuple[Path, Sample]) -> None:
    path, sample = made
    capture = attnlens.open(path)[0]
    group: Any = zarr.open_group(path, path=sample.name, mode="r")
    for name in ("next_rank", "lens_probability", "attention_weight", "token_id", "depth"):
        found = np.asarray(capture[name])
        assert found.dtype == group[name].dtype
        np.testing.assert_array_equal(found, group[name][...])
    assert np.asarray(capture["next_rank"], dtype=np.float64).dtype == np.float64
    assert np.nanmean(capture["lens_entropy"]) == np.nanmean(group["lens_entropy"][...])
    with pytest.raises(ValueError, match="gets a copy"):
        np.array(capture["next_rank"], copy=False)


def test_attention_rows_and_reductions(made: tuple[Path, Sample]) -> None:
    path, sample = made
    attention = attnlens.open(path)[0].attention
    weights = sample.expected()["attention_weight"].astype(np.float32)
    rows = attention.rows([12, 3, 4], layers=[2, 0], heads=1)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, weights[[2, 0]][:, 1:2][:, :, [12, 3, 4]])
    for name, plain in (("max", weights.max(1)), ("mean", weights.mean(1).astype(np.float16).astype(np.float32))):
        for queries in ([8, 11, 12], [2, 3, 12]):
            found = attention.reduced(name, queries)  # type: ignore[arg-type]
            np.testing.assert_allclose(found, plain[:, queries], atol=0 if name == "max" else 5e-4)
    with pytest.raises(AbsentError, match="layer 1 has no attention; layers with attention: 0, 2"):
        attention.rows(3, layers=1)
    assert np.isnan(attention.rows(3)[1]).all()


def test_what_is_not_there_is_an_error(made: tuple[Path, Sample]) -> None:
    path, _ = made
    store = attnlens.open(path)
    capture = store[0]
    with pytest.raises(AbsentError, match="token 14 was not fed to the model"):
        capture.attention.rows(14)
    with pytest.raises(AbsentError, match="token 14 was not fed"):
        capture.attention.reduced("max", [13, 14])
    with pytest.raises(AbsentError, match="no row 14"):
        capture["lens_token"].isel(token=14)
    with pytest.raises(InputError, match="query 15 is outside 0 … 14"):
        capture.attention.rows(15)
    with pytest.raises(InputError, match="layer 3 is outside 0 … 2"):
        capture.attention.rows(3, layers=3)
    with pytest.raises(InputError, match="no axis 'heads'"):
        capture["attention_weight"].isel(heads=1)
    with pytest.raises(InputError, match="no layer 9, there are 0 … 2"):
        capture["attention_weight"].sel(layer=9)
    with pytest.raises(AbsentError, match="no such array"):
        capture["nonsense"]
    with pytest.raises(AbsentError, match="no capture '0007'"):
        store["0007"]
    with pytest.raises(AbsentError, match="no number 1"):
        store[1]
    assert np.isnan(capture["lens_entropy"][:, 13:][:, 1]).all()


def test_absent_parts_say_why(tmp_path: Path) -> None:
    Sample(lens=False, attention=False).write(tmp_path / "run.zarr")
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    with pytest.raises(AbsentError, match="without a lens \\(no head\\)"):
        capture["lens_token"]
    with pytest.raises(AbsentError, match="has no attention: not asked for"):
        capture.attention  # noqa: B018


def test_appending_touches_no_other_capture(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    Sample().write(path)
    before = tree_hash(path / "0000")
    second = Sample(seed=1, n_prompt=7)
    second.write(StoreWriter.create(path, append=True))
    assert tree_hash(path / "0000") == before
    assert attnlens.open(path).ids == ["0000", "0001"]
    assert_plain_zarr(path, second)
    index = attnlens.open(path).metadata.index
    assert index is not None
    assert [(entry.id, entry.status, entry.completion) for entry in index] == [
        ("0000", "complete", "Alice."),
        ("0001", "complete", "Alice."),
    ]


def test_create_refuses_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    Sample().write(path)
    with pytest.raises(InputError, match=r"exists: give another store, or append=True .* or overwrite=True"):
        StoreWriter.create(path)
    Sample(n_prompt=8).write(StoreWriter.create(path, overwrite=True))
    assert attnlens.open(path)[0].n_prompt == 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("kind", ["folder", "file", "group", "mixed"])
def test_overwrite_deletes_only_a_store(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.zarr"
    if kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    elif kind == "file":
        path.write_text("years of work")
    elif kind == "group":
        zarr.create_group(path, attributes={"mine": 1})
    else:
        Sample().write(path)
        (path / "notes.txt").write_text("years of work")
    before = path.read_text() if path.is_file() else tree_hash(path)
    with pytest.raises(InputError, match="will not overwrite"):
        StoreWriter.create(path, overwrite=True)
    assert (path.read_text() if path.is_file() else tree_hash(path)) == before


def test_nothing_is_on_disk_before_the_first_capture(tmp_path: Path) -> None:
    Sample().write(tmp_path / "run.zarr")
    before = tree_hash(tmp_path)
    StoreWriter.create(tmp_path / "new.zarr")
    StoreWriter.create(tmp_path / "run.zarr", overwrite=True)
    StoreWriter.create(tmp_path / "run.zarr", append=True)
    assert tree_hash(tmp_path) == before


def test_planned_then_partial(tmp_path: Path) -> None:
    sample = Sample(n_prompt=16)
    writer = StoreWriter.create(tmp_path / "run.zarr")
    with writer.capture(sample.metadata(), capacity=40) as out:
        assert attnlens.open(tmp_path / "run.zarr").metadata.planned == ["0000"]
        assert attnlens.open(tmp_path / "run.zarr")[0].status == "planned"
        sample.prompt(out)
        while out.committed < 16:
            pass
        capture = attnlens.open(tmp_path / "run.zarr")[0]
        assert (capture.status, capture.committed, capture.n_token) == ("partial", 16, 16)
        np.testing.assert_array_equal(
            capture.attention.rows(range(16)), sample.weights[:, :, :16, :16].astype(np.float32)
        )
        assert capture["attention_weight"].shape == (3, 2, 16, 16)
        sample.step(out, 16)
        out.finish({})


def test_an_exception_keeps_what_was_handed_over(tmp_path: Path) -> None:
    sample = Sample(n_prompt=10, n_generated=6)
    writer = StoreWriter.create(tmp_path / "run.zarr")

    def interrupted() -> None:
        with writer.capture(sample.metadata(), capacity=40) as out:
            sample.prompt(out)
            for row in range(10, 13):
                sample.step(out, row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    assert (capture.status, capture.committed, capture.metadata.error) == ("partial", 13, "interrupted")
    np.testing.assert_array_equal(
        capture.attention.rows(12)[..., :13], sample.weights[:, :, 12:13, :13].astype(np.float32)
    )
    with pytest.raises(InputError, match="token 13 is outside 0 … 12"):
        capture["lens_entropy"].isel(token=13)


def test_failing_before_any_row_is_failed(tmp_path: Path) -> None:
    writer = StoreWriter.create(tmp_path / "run.zarr")
    out = writer.capture(Sample().metadata(), capacity=40)
    out.fail("the model broke")
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    assert (capture.status, capture.metadata.error) == ("failed", "the model broke")
    with pytest.raises(StoreError, match="closed"):
        out.rows(3)


def test_rows_that_nobody_handed_over_are_not_committed(tmp_path: Path) -> None:
    sample = Sample()
    writer = StoreWriter.create(tmp_path / "run.zarr")
    out = writer.capture(sample.metadata(), capacity=40)
    sample.prompt(out)
    out.rows(8)
    with pytest.raises(StoreError, match=r"attention_weight: row 5 of index 0 .* never handed over"):
        out.finish({})
    assert attnlens.open(tmp_path / "run.zarr")[0].committed in (0, 5)


def test_text_that_is_no_utf8_does_not_stop_the_writer(tmp_path: Path) -> None:
    sample = Sample(n_prompt=2)
    sample.texts[0] = "a\ud800b"
    sample.write(tmp_path / "run.zarr")
    assert attnlens.open(tmp_path / "run.zarr")[0].token_text[0] == "a?b"


def test_the_producer_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(n_prompt=64, n_layer=4)
    seen: list[int] = []
    attention = CaptureFile.attention
    held: list[CaptureWriter] = []

    def slow(self: CaptureFile, *values: Any) -> None:
        seen.append(held[0].queue_bytes if held else 0)
        attention(self, *values)

    monkeypatch.setattr(CaptureFile, "attention", slow)
    limit = 3 * sample.weights[0, :, :8, :8].nbytes
    with StoreWriter.create(tmp_path / "run.zarr").capture(sample.metadata(), capacity=80, buffer_bytes=limit) as out:
        held.append(out)
        sample.prompt(out, 4)
        for row in range(64, sample.n_token):
            sample.step(out, row)
        out.finish({})
    assert max(seen) <= max(limit, sample.weights[0, :, :4].nbytes)
    assert_plain_zarr(tmp_path / "run.zarr", sample)


def test_a_failed_overwrite_gives_the_old_store_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.zarr"
    Sample().write(path)
    before = tree_hash(path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CaptureFile, "_create", full)
    with pytest.raises(StoreError, match=r"disk full while writing .*run.zarr: nothing was kept"):
        StoreWriter.create(path, overwrite=True).capture(Sample().metadata(), capacity=9)
    assert tree_hash(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.zarr"]


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "run.zarr").mkdir()
    Sample().write(StoreWriter.create(tmp_path / "run.zarr", overwrite=True))
    assert attnlens.open(tmp_path / "run.zarr")[0].status == "complete"


def test_a_capture_longer_than_one_chunk_of_every_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlens.store.layout.LIST_CHUNK", 7)
    monkeypatch.setattr("attnlens.store.layout.BYTES_CHUNK", 5)
    sample = Sample(n_prompt=20, n_generated=9, vocabulary_size=31)
    writer = StoreWriter.create(tmp_path / "run.zarr")
    sample.write(writer)
    assert_plain_zarr(tmp_path / "run.zarr", sample)
    smaller = Sample(n_prompt=20, vocabulary_size=31, seed=2, name="0001")
    model = smaller.metadata().model.model_copy(update={"vocabulary_size": 4})
    with writer.capture(smaller.metadata(model=model.model_dump()), capacity=24) as out:
        smaller.prompt(out)  # sends more entries than the vocabulary was said to have, and more bytes than were planned
        out.tokens([1], ["x" * 5000], [b"x" * 5000], [False])
        out.finish({})
    capture = attnlens.open(tmp_path / "run.zarr")["0001"]
    assert len(capture.vocabulary) == 31
    assert capture.token_bytes(20) == b"x" * 5000
