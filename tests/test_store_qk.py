"""Stores of queries and keys: written, read by plain zarr, replayed against float64, damaged, hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import attnlens
import attnlens.store.writer
from attnlens.schemas.errors import AbsentError, AttnlensError, InputError, StoreError
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store import replay
from attnlens.store.verify import verify
from attnlens.store.writer import CaptureWriter
from plain_bits import own_order
from store_sample import Sample

ATTENDING = {"full": {}, "sliding": {"window": 5}, "chunked": {"window": 4}}


class Vectors(Sample):
    """A capture of made-up queries and keys, and its attention in float64."""

    def __init__(self, *, kinds: tuple[str, ...], kv: int = 2, dtype: str = "float32", features: int = 6, **more: Any):
        super().__init__(n_layer=len(kinds), n_head=4, none_layers=(), **more)
        self.kinds, self.kv, self.dtype, self.features = kinds, kv, dtype, features
        rng = np.random.default_rng(self.seed)
        self.q, self.k = (self._random(rng, heads) for heads in (self.n_head, kv))
        self.sinks = rng.normal(size=(self.n_layer, self.n_head)).round(3)

    def _random(self, rng: np.random.Generator, heads: int) -> NDArray[np.float32]:
        """(token, layer, head, feature), numbers that the dtype has."""
        values = rng.normal(size=(self.n_token, self.n_layer, heads, self.features)).astype(np.float32)
        if self.dtype == "bfloat16":
            values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return values.astype(np.float16).astype(np.float32) if self.dtype == "float16" else values

    def source(self, layer: int) -> int:
        """A layer of kind "shared" uses the keys of layer 0."""
        return 0 if self.kinds[layer] == "shared" else layer

    def rows(self) -> NDArray[np.float64]:
        """(layer, head, query, key) by the formula of docs/format.md."""
        found = np.full((self.n_layer, self.n_head, self.n_token, self.n_token), np.nan)
        query, key = np.mgrid[: self.n_token, : self.n_token]
        for layer, kind in enumerate(self.kinds):
            if kind == "none":
                continue
            seen = key <= query
            seen &= {"sliding": key > query - 5, "chunked": key >= query // 4 * 4}.get(kind, seen)
            for head in range(self.n_head):
                k = self.k[:, self.source(layer), head * self.kv // self.n_head].astype(np.float64)
                scores = 0.7 * self.q[:, layer, head].astype(np.float64) @ k.T
                scores = 2 * np.tanh(scores / 2) if kind == "softcap" else scores
                power = np.where(seen, np.exp(scores), 0)
                rest = np.exp(self.sinks[layer, head]) if kind == "sinks" else 0.0
                found[layer, head] = power / (power.sum(-1, keepdims=True) + rest)
        return found

    def metadata(self, **changes: Any) -> CaptureMetadata:
        about = super().metadata().model_dump(mode="json")
        for layer, kind in zip(about["model"]["layers"], self.kinds, strict=True):
            layer |= {"kind": kind if kind in ("none", *ATTENDING) else "full", "scaling": 0.7} | ATTENDING.get(
                kind, {}
            )
            layer |= {"n_kv_head": self.kv, "key_features": self.features}
            layer |= {"softcap": 2.0} if kind == "softcap" else {}
            layer |= {"key_source": 0} if kind == "shared" else {}
            if kind == "sinks":
                layer |= {"sinks": True, "sink_values": self.sinks[layer["index"]].tolist()}
        return CaptureMetadata.model_validate({**about, "attention": "qk", "attention_dtype": self.dtype, **changes})

    def bits(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """As the store keeps them."""
        if self.dtype == "bfloat16":
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(self.dtype)

    def hand_over_attention(self, out: CaptureWriter, layer: int, start: int, stop: int) -> None:
        if self.kinds[layer] == "none":
            return
        q, k = (self.bits(values[start:stop, layer])[None] for values in (self.q, self.k))
        out.vectors(start, [layer], q, k)
        low = max(start, self.n_prompt - 1)
        if low < stop:
            rows = self.rows()[layer, :, low:stop, :stop].astype(np.float16)
            mean = rows.astype(np.float32).mean(0).astype(np.float16)
            out.reductions(layer, low, 0, rows.max(0), mean)


KINDS = ("full", "sliding", "none", "chunked", "softcap", "sinks", "shared")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("hold", [0, 1 << 26], ids=["in a file", "in memory"])
def test_rows_are_the_formulas(tmp_path: Path, dtype: str, hold: int) -> None:
    sample = Vectors(kinds=KINDS, dtype=dtype, n_prompt=70, n_generated=9)
    sample.write(tmp_path / "run.zarr", key_rows_hold=hold)
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["0000"]
    fed, array = sample.n_fed, group["attention_q"]
    assert array.metadata.dimension_names == ("token", "layer", "head", "head_feature")
    stored = own_order(array, array[:fed][:, [0, 1, 3, 4, 5, 6]])
    np.testing.assert_array_equal(stored, sample.bits(sample.q[:fed][:, [0, 1, 3, 4, 5, 6]]))
    keys = group["attention_k"]
    np.testing.assert_array_equal(own_order(keys, keys[:fed, 0]), sample.bits(sample.k[:fed, 0]))
    if dtype == "bfloat16":
        assert array.attrs["attnlens"]["bits"] == "bfloat16"
        floats = (stored.astype("uint32") << 16).view("float32")  # the line of docs/format.md
        np.testing.assert_array_equal(floats, sample.q[:fed][:, [0, 1, 3, 4, 5, 6]])
    absent = own_order(array, array[:fed, 2]), own_order(keys, keys[:fed, 2]), own_order(keys, keys[:fed, 6])
    assert all((values == 0x7FC0).all() if dtype == "bfloat16" else np.isnan(values).all() for values in absent)
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    rows = capture.attention.rows(range(fed))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, sample.rows()[:, :, :fed], atol=2e-6)
    np.testing.assert_array_equal(capture.attention.rounded(3), rows[:, :, 3:4].astype(np.float16))
    assert verify(tmp_path / "run.zarr").problems == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rows_layers_and_heads_of_any_shape(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    kinds = tuple(draw(st.lists(st.sampled_from(KINDS[:-1]), min_size=1, max_size=4)))
    sample = Vectors(
        kinds=(*kinds, "full"),
        kv=draw(st.sampled_from([1, 2, 4])),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        n_prompt=draw(st.integers(1, 90)),
        n_generated=draw(st.integers(1, 12)),
    )
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
    sample.write(path, block=draw(st.integers(1, 90)), key_rows_hold=draw(st.sampled_from([0, 1 << 14, 1 << 26])))
    attention, expected = attnlens.open(path)[0].attention, sample.rows()
    queries = draw(st.lists(st.integers(0, sample.n_fed - 1), min_size=1, max_size=5))
    attending = [layer for layer, kind in enumerate(sample.kinds) if kind != "none"]
    layers = draw(st.lists(st.sampled_from(attending), min_size=1, max_size=3))
    heads = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    found = attention.rows(queries, layers, heads)
    np.testing.assert_allclose(found, expected[np.ix_(layers, heads, queries)], atol=2e-6)
    for name, over in (("max", np.max), ("mean", np.mean)):
        reduced = attention.reduced(name, queries, layers)  # type: ignore[arg-type]
        np.testing.assert_allclose(reduced, over(expected[np.ix_(layers, range(4), queries)], axis=1), atol=6e-4)


def test_keys_that_do_not_fit_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Vectors(kinds=("full", "sliding"), n_prompt=300, features=64)
    sample.write(tmp_path / "run.zarr")
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    whole = capture.attention.rows([5, 299, 302])
    monkeypatch.setattr(replay, "KEPT_BYTES", 1 << 16)
    monkeypatch.setattr(replay, "PART_BYTES", 64)
    monkeypatch.setattr(replay, "BLOCK_BYTES", 64)
    small = attnlens.open(tmp_path / "run.zarr")[0]
    for _ in range(3):
        np.testing.assert_allclose(small.attention.rows([5, 299, 302]), whole, atol=1e-7)
    np.testing.assert_array_equal(small.attention.reduced("max", [5, 290]), capture.attention.reduced("max", [5, 290]))


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    Vectors(kinds=("full", "none"), n_prompt=6).write(tmp_path / "run.zarr")
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    with pytest.raises(AbsentError, match="token 9 was not fed to the model"):
        capture.attention.rows(9)
    with pytest.raises(InputError, match="query 10 is outside 0 … 9"):
        capture.attention.rows(10)
    with pytest.raises(InputError, match="layer 2 is outside 0 … 1"):
        capture.attention.rows(3, layers=2)
    with pytest.raises(InputError, match="head 4 is outside 0 … 3"):
        capture.attention.rows(3, heads=4)
    with pytest.raises(AbsentError, match="attention was captured in mode qk"):
        capture["attention_weight"]
    with pytest.raises(AbsentError, match="layer 1 has no attention; layers with attention: 0"):
        capture.attention.rows(3, layers=1)
    assert np.isnan(capture.attention.rows(3, layers=slice(1, 2))).all()
    np.testing.assert_array_equal(capture.attention.rows([-3]), capture.attention.rows([7]))


def edit(path: Path, name: str, change: Any) -> None:
    array: Any = zarr.open_array(path / "0000" / name, mode="r+")
    values = array[...]
    change(values)
    array[...] = values


def put(cell: Any, value: float) -> Any:
    return lambda values: values.__setitem__(cell, value)


@pytest.mark.parametrize(
    ("name", "cell", "value", "words"),
    [
        ("attention_k", (4, 0, 1, 3), np.nan, "token 4, layer 0: is not a finite number"),
        ("attention_q", (9, 1, 2, 0), np.inf, "token 9, layer 1: is not a finite number"),
        ("attention_q", (9, 1, 2, 0), 3e38, "layer 1: its scores may overflow"),
        ("attention_k", (4, 1, 0, 0), 50.0, "differs from the heads' weights"),
        ("attention_max", (2, 0, 3), 0.9, "differs from the heads' weights"),
    ],
)
def test_numbers_that_were_changed_are_found(tmp_path: Path, name: str, cell: Any, value: float, words: str) -> None:
    path = tmp_path / "run.zarr"
    Vectors(kinds=("full", "sliding"), n_prompt=8, n_generated=6).write(path)
    edit(path, name, put(cell, value))
    told = [str(problem) for problem in verify(path).problems if problem.kind == "value"]
    assert any(words in problem for problem in told), told


def test_keys_that_are_no_numbers_are_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    sample = Vectors(kinds=("full",), n_prompt=8)
    sample.k[4, 0, 1, 3] = np.nan
    sample.write(path)
    with pytest.raises(StoreError, match="layer 0: queries and keys give no finite weights; run `lens verify`"):
        attnlens.open(path)[0].attention.rows(7)


def test_a_missing_chunk_never_reads_as_keys(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    Vectors(kinds=("full",), n_prompt=8, dtype="bfloat16").write(path)
    (path / "0000/attention_k/c/0/0/0/0").unlink()
    with pytest.raises(StoreError, match=r"attention_k: chunk c/0/0/0/0 is damaged .*missing"):
        attnlens.open(path)[0].attention.rows(7)
    assert any("attention_k" in str(problem) for problem in verify(path).problems)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_features": 7}, "axis head_feature has 6 entries, expected 7"),
        ({"n_kv_head": 4}, "axis kv_head has 2 entries, expected 4"),
        ({"scaling": None}, "scaling is missing"),
        ({"kind": "sliding", "window": None}, "window is missing"),
        ({"sinks": True, "sink_values": [1.0]}, "1 sink values for 4 heads"),
        ({"key_source": 7}, "key_source is 7"),
    ],
)
def test_a_layer_table_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "run.zarr"
    Vectors(kinds=("full",), n_prompt=8).write(path)
    document = json.loads((path / "0000/zarr.json").read_text())
    document["attributes"]["attnlens"]["model"]["layers"][0].update(changes)
    (path / "0000/zarr.json").write_text(json.dumps(document))
    with pytest.raises(AttnlensError, match=words):
        attnlens.open(path)[0].attention.rows(3)
    assert not verify(path).passed


def test_a_writer_that_dies_leaves_rows_that_replay(tmp_path: Path) -> None:
    sample = Vectors(kinds=("full", "sliding"), n_prompt=20, n_generated=12)
    writer = attnlens.store.writer.StoreWriter.create(tmp_path / "run.zarr")

    def interrupted() -> None:
        with writer.capture(sample.metadata(), capacity=60, key_rows_hold=0) as out:
            sample.prompt(out)
            for row in range(20, 29):
                sample.step(out, row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    capture = attnlens.open(tmp_path / "run.zarr")[0]
    assert (capture.status, capture.committed) == ("partial", 29)
    found = capture.attention.rows(range(29))[..., :29]
    np.testing.assert_allclose(found, sample.rows()[:, :, :29, :29], atol=2e-6)
    assert not [file for file in (tmp_path / "run.zarr").rglob("*") if file.name.endswith(".partial")]
