"""Datasets of xarray against plain zarr and `capture.attention.rows`, and that nothing is read too early."""

from __future__ import annotations

import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.schemas.errors import MissingExtraError, StoreError
from attnlens.store.attention import ReplayedAttention
from attnlens.store.named import NamedArray
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.pack import pack
from attnlens.store.writer import StoreWriter
from plain_bits import own_order
from store_sample import Sample
from store_server import Served, serve
from test_store_qk import KINDS, Vectors

BOTH = pytest.mark.parametrize("dask", [True, False], ids=["dask", "plain"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    dense = Sample(n_prompt=40, n_generated=7, n_layer=3, none_layers=(1,), sliding={2: 9})
    dense.write(folder / "dense.zarr")
    Vectors(kinds=KINDS, dtype="bfloat16", n_prompt=40, n_generated=7).write(folder / "qk.zarr")
    pack(folder / "dense.zarr", folder / "dense.zarr.zip")
    return {"dense": folder / "dense.zarr", "qk": folder / "qk.zarr", "packed": folder / "dense.zarr.zip"}


def plain(path: Path) -> dict[str, Any]:
    """Every array of the first capture, by zarr alone; bfloat16 as docs/format.md says."""
    group: Any = zarr.open_group(path, mode="r")["0000"]
    found = {name: array[...] for name, array in group.arrays() if not name.startswith("manifest_")}
    for name in ("attention_q", "attention_k"):
        if name in found:
            found[name] = (own_order(group[name], found[name]).astype("uint32") << 16).view("float32")
    return found


def all_rows(path: Path) -> Any:
    """Attention of all heads, rows that were not committed as NaN."""
    capture = attnlens.open(path)[0]
    rows = np.full((*capture.attention.rows(0).shape[:2], capture.n_token, capture.n_token), np.nan, np.float32)
    rows[:, :, : capture.committed] = capture.attention.rows(range(capture.committed))
    return rows


@pytest.fixture(scope="module")
def wholes(stores: dict[str, Path]) -> dict[str, Any]:
    return {name: all_rows(stores[name]) for name in ("dense", "qk")}


@BOTH
@pytest.mark.parametrize("name", ["dense", "qk", "packed"])
def test_every_variable_is_what_plain_zarr_reads(stores: dict[str, Path], name: str, dask: bool) -> None:
    path = stores["dense" if name == "packed" else name]
    capture = attnlens.open(stores[name])[0]
    data = capture.to_xarray(dask=dask)
    expected = plain(path) | {"attention_weight": all_rows(path)}
    texts = {"query_text", "key_text", "generated_text"}
    assert set(data.variables) == set(expected) | texts
    for key, values in expected.items():
        found = data[key]
        np.testing.assert_array_equal(found.values, values, err_msg=key)
        if key != "attention_weight" or name != "qk":
            assert found.dims == capture[key].axes
            spec = capture.specs[key]
            assert (found.attrs["units"], found.attrs["meaning"]) == (spec.unit, spec.meaning)
        if values.dtype == np.float16:
            assert found.dtype == np.float32
    assert data.query_text.values.tolist() == data.key_text.values.tolist() == capture.token_text
    assert data.generated_text.values.tolist() == capture.token_text[capture.n_prompt - 1 :]
    assert data.attrs["prompt"] == capture.metadata.prompt
    assert (data.attrs["capture"], data.attrs["status"], data.attrs["committed"]) == ("0000", "complete", 46)
    assert {"token_text", "layer", "head", "query", "key", "depth", "vocabulary_text"} <= set(data.coords)
    assert set(data.data_vars) >= {"attention_weight", "lens_token", "model_probability"}


def picks(low: int, high: int) -> st.SearchStrategy[Any]:
    """A number, a slice or positions along an axis."""
    bounds = st.none() | st.integers(-50, 50)
    listed = st.lists(st.integers(low, high), max_size=9).map(lambda numbers: np.asarray(numbers, np.intp))
    return st.integers(low, high) | st.builds(slice, bounds, bounds, st.sampled_from([1, 2, 7, -1])) | listed


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    index=st.tuples(picks(-3, 2), picks(-2, 1), picks(-47, 46), picks(-47, 46)), name=st.sampled_from(["dense", "qk"])
)
@example(index=(0, 0, 0, slice(0, 0, -1)), name="dense")
def test_any_index_gives_what_numpy_gives(
    stores: dict[str, Path], wholes: dict[str, Any], index: tuple[Any, ...], name: str
) -> None:
    named = dict(zip(("layer", "head", "query", "key"), index, strict=True))
    found = attnlens.open(stores[name])[0].to_xarray(dask=False).attention_weight.isel(named)
    expected = wholes[name]
    for axis in reversed(range(4)):
        expected = expected[(*(slice(None),) * axis, index[axis])]
    # A row of queries and keys is exact to float32: which rows are made together shows in its last bit.
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=0 if name == "dense" else 1e-6)


def test_points_and_labels(stores: dict[str, Path], wholes: dict[str, Any]) -> None:
    import xarray

    for name in ("dense", "qk"):
        rows, data = wholes[name], attnlens.open(stores[name])[0].to_xarray(dask=False)
        at = xarray.DataArray([45, 3, 3], dims="point"), xarray.DataArray([0, 3, 1], dims="point")
        points = data.attention_weight.isel(query=at[0], key=at[1])
        np.testing.assert_allclose(points.values, rows[:, :, [45, 3, 3], [0, 3, 1]], rtol=0, atol=1e-6)
        one = data.attention_weight.sel(layer=0, head=1, query=46)
        assert np.isnan(one.values).all()
        assert one.query_text.item() == attnlens.open(stores[name])[0].token_text[46]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is read, by name and index, and which rows are replayed."""
    seen: list[tuple[str, Any]] = []
    read, replay = NamedArray._cells_at, ReplayedAttention.rows

    def reading(array: NamedArray, index: Any, *, check: bool) -> Any:
        seen.append((array.name, index))
        return read(array, index, check=check)

    def replaying(attention: Any, queries: Any, layers: Any = None, heads: Any = None) -> Any:
        seen.append(("rows", np.asarray(queries).tolist()))
        return replay(attention, queries, layers, heads)

    monkeypatch.setattr(NamedArray, "_cells_at", reading)
    monkeypatch.setattr(ReplayedAttention, "rows", replaying)
    return seen


@BOTH
@pytest.mark.parametrize("name", ["dense", "qk", "packed"])
def test_only_what_is_asked_for_is_read(
    stores: dict[str, Path], name: str, dask: bool, asked: list[tuple[str, Any]]
) -> None:
    data = attnlens.open(stores[name])[0].to_xarray(dask=dask)
    row = data.attention_weight.sel(query=20)
    coordinates = {"token", "query", "key", "layer", "head", "kv_head", "depth", "generated"}
    assert {key for key, _ in asked} <= coordinates | {"manifest_file", "manifest_sha256"}
    asked.clear()
    row.values  # noqa: B018
    if name == "qk":
        assert [part for key, part in asked if key == "rows"] == [[20]]
    else:
        assert [key for key, _ in asked] == ["attention_weight"]
        assert asked[0][1][2] == slice(20, 21)


def test_dask_arrays_have_one_chunking(stores: dict[str, Path]) -> None:
    data = attnlens.open(stores["qk"])[0].to_xarray()
    assert data.attention_weight.chunks is not None
    assert sum(data.chunks["query"]) == 47
    mean = data.attention_weight.mean("head").compute(scheduler="threads")
    np.testing.assert_allclose(mean.values, all_rows(stores["qk"]).mean(1), rtol=1e-6)


@pytest.mark.parametrize("name", ["dense", "qk"])
def test_rows_that_are_not_committed_are_masked(tmp_path: Path, name: str) -> None:
    sample = Sample() if name == "dense" else Vectors(kinds=("full", "sliding"))
    writer = StoreWriter.create(tmp_path / "run.zarr")
    with suppress(RuntimeError), writer.capture(sample.metadata(), capacity=20) as out:
        sample.prompt(out)
        sample.step(out, 5)
        sample.hand_over_tokens(out, 6, 8)
        raise RuntimeError
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    data = capture.to_xarray(dask=False)
    assert (data.attrs["status"], data.attrs["committed"]) == ("partial", 6)
    assert data.sizes["query"] == data.sizes["token"] == capture.n_token > 6
    weights = data.attention_weight.values
    np.testing.assert_array_equal(weights[:, :, :6], capture.attention.rows(range(6)))
    assert np.isnan(weights[:, :, 6:]).all()
    assert np.isnan(data.attention_weight.isel(query=-1, key=0).values).all()
    assert (data.lens_token.isel(token=[0, -1]).values[:, 1] == data.lens_token.attrs["missing_value"]).all()


@BOTH
@pytest.mark.parametrize("name", ["dense", "qk"])
def test_what_was_cropped_away_is_masked(
    stores: dict[str, Path], wholes: dict[str, Any], name: str, dask: bool, tmp_path: Path
) -> None:
    keep = Keep(layers="0,2:", heads="1")
    path = crop(stores[name], tmp_path / "part.zarr", keep=keep).path
    found = attnlens.open(path)[0].to_xarray(dask=dask).attention_weight
    expected = np.full_like(wholes[name], np.nan)
    expected[np.ix_([0, *range(2, len(expected))], [1])] = wholes[name][np.ix_([0, *range(2, len(expected))], [1])]
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=0 if name == "dense" else 1e-6)
    np.testing.assert_allclose(found.sel(layer=2, query=20).values, expected[2, :, 20], rtol=0, atol=1e-6)
    assert np.isnan(found.sel(layer=1).values).all()
    if name == "dense":
        small = crop(stores[name], tmp_path / "small.zarr", keep=Keep(tokens="10:30"), dtype="uint8").path
        weights = attnlens.open(small)[0].to_xarray(dask=dask).attention_weight
        whole = wholes[name].copy()
        whole[:, :, :10] = whole[:, :, 30:] = whole[..., :10] = whole[..., 30:] = np.nan
        np.testing.assert_allclose(weights.values, whole, rtol=0, atol=0.005)


def test_a_dataset_goes_to_another_process(stores: dict[str, Path], tmp_path: Path) -> None:
    for name in ("dense", "qk", "packed"):
        data = attnlens.open(stores[name])[0].to_xarray(dask=False)
        again = pickle.loads(pickle.dumps(data))
        np.testing.assert_array_equal(again.attention_weight.sel(query=20), data.attention_weight.sel(query=20))
    Sample(seed=1).write(tmp_path / "run.zarr")
    sent = pickle.dumps(attnlens.open(tmp_path / "run.zarr")[0].to_xarray(dask=False))
    writer = StoreWriter.create(tmp_path / "run.zarr", overwrite=True)
    Sample(seed=2).write(writer)
    with pytest.raises(StoreError, match="capture 0000 has changed since it was opened"):
        pickle.loads(sent)


def test_a_store_is_a_tree(tmp_path: Path) -> None:
    writer = StoreWriter.create(tmp_path / "run.zarr")
    Sample(seed=1).write(writer)
    Sample(seed=2, lens=False, n_generated=2).write(writer)
    tree = attnlens.open(tmp_path / "run.zarr").to_datatree()
    assert list(tree.children) == ["0000", "0001"]
    assert tree.attrs["version"] == 1
    for path, node in tree.children.items():
        group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")[path]
        np.testing.assert_array_equal(node["attention_weight"].values, group["attention_weight"][...])
    assert "lens_token" not in tree["0001"]


def test_without_xarray_the_extra_is_named(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    store = attnlens.open(stores["dense"])
    for ask in (store[0].to_xarray, store.to_datatree):
        with pytest.raises(MissingExtraError, match=r"pip install 'attnlens\[xarray\]'"):
            ask()


def test_without_dask_xarray_is_lazy_by_itself(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlens.store.dataset.find_spec", lambda name: None)
    assert attnlens.open(stores["dense"])[0].to_xarray().attention_weight.chunks is None


@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_a_store_behind_a_url_is_as_lazy(stores: dict[str, Path], kind: str) -> None:
    here = attnlens.open(stores[kind])[0].to_xarray()
    with serve(Served(stores[kind].parent)) as served:
        there = attnlens.open(f"{served.url}/{stores[kind].name}")[0].to_xarray()
        before = len(served.log)
        row = there["attention_weight"][0, 1, 41].values
        if kind == "dense":  # the small packed one came whole, with its list of files
            assert len(served.log) > before, "cells came before they were asked for"
        np.testing.assert_array_equal(row, here["attention_weight"][0, 1, 41].values)
        np.testing.assert_array_equal(there["lens_token"].values, here["lens_token"].values)
