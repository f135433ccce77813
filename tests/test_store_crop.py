"""Cropped, merged and redacted stores against plain zarr of the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.arrays import ARRAYS, FILL
from attnlens.schemas.errors import AbsentError, AttnlensError, InputError
from attnlens.store import quantize
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.merge import merge
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.verify import verify
from render_store import make
from store_sample import Sample, tree_hash

AXES = {"token": "tokens", "query": "tokens", "key": "tokens", "generated": "tokens", "layer": "layers",
        "depth": "layers", "head": "heads"}  # fmt: skip
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    Sample(n_prompt=9, n_generated=5, n_layer=4, n_head=3).write(path)
    return path


def plain(path: Path, capture: str = "0000") -> dict[str, Any]:
    """Every array, by zarr alone, 8-bit ones as they are stored."""
    group: Any = zarr.open_group(path, mode="r")[capture]
    return {name: array[...] for name, array in group.arrays() if not name.startswith("manifest_")}


def is_fill(values: Any, dtype: str) -> Any:
    fill: Any = FILL[dtype]  # type: ignore[index]
    return np.isnan(values) if values.dtype.kind == "f" else values == fill


lists = st.sets(st.integers(0, 2), min_size=1).map(sorted)


@given(
    tokens=st.sets(st.integers(0, 13), min_size=1).map(sorted),
    layers=st.sets(st.integers(0, 3), min_size=1).map(sorted),
    heads=lists,
)
@SLOW
def test_what_is_kept_is_as_it_was_and_the_rest_is_absent(
    store: Path, tmp_path_factory: pytest.TempPathFactory, tokens: list[int], layers: list[int], heads: list[int]
) -> None:
    chosen = {"tokens": tokens, "layers": layers, "heads": heads}
    said = {name: ",".join(map(str, numbers)) for name, numbers in chosen.items()}
    keep = Keep(tokens=said["tokens"], layers=said["layers"], heads=said["heads"])
    path = crop(store, tmp_path_factory.mktemp("crop") / "c.zarr", keep=keep).path
    assert verify(path).problems == []
    before, after = plain(store), plain(path)
    assert before.keys() == after.keys()
    specs = {spec.name: spec for spec in ARRAYS}
    for name, values in before.items():
        spec = specs[name]
        if spec.axes == (name,):
            np.testing.assert_array_equal(after[name], values)
            continue
        if spec.axes[0] in ("byte", "edge", "entry"):
            continue
        kept = np.ones(values.shape, bool)
        for axis, size in enumerate(values.shape):
            if spec.axes[axis] not in AXES:
                continue
            numbers = set(chosen[AXES[spec.axes[axis]]])
            if spec.axes[axis] == "depth":
                numbers |= {4}
            origin = 8 if spec.axes[axis] == "generated" else 0
            mask = np.isin(np.arange(origin, origin + size), sorted(numbers))
            kept &= mask.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        np.testing.assert_array_equal(after[name][kept], values[kept], err_msg=name)
        assert is_fill(after[name][~kept], spec.dtype).all(), name
    capture, whole = attnlens.open(path)[0], attnlens.open(store)[0]
    texts = [capture.token_bytes(token) for token in range(14)]
    assert texts == [whole.token_bytes(token) if token in tokens else b"" for token in range(14)]
    used = np.unique(after["lens_token"])
    assert sorted(after["vocabulary_id"].tolist()) == used[used >= 0].tolist()


def test_keeping_all_changes_no_value(store: Path, tmp_path: Path) -> None:
    before, after = plain(store), plain(crop(store, tmp_path / "c.zarr").path)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_cropping_twice_is_cropping_once(store: Path, tmp_path: Path) -> None:
    one = crop(store, tmp_path / "a.zarr", keep=Keep(tokens="2:9", layers="1:4")).path
    two = crop(one, tmp_path / "b.zarr", keep=Keep(tokens="5:12", layers="0:3", heads="1")).path
    once = crop(store, tmp_path / "c.zarr", keep=Keep(tokens="5:9", layers="1:3", heads="1")).path
    before, after = plain(once), plain(two)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    ours = [attnlens.open(path)[0].metadata.crop for path in (once, two)]
    assert ours[0] == ours[1]


def test_absent_layers_and_heads_are_said(store: Path, tmp_path: Path) -> None:
    path = crop(store, tmp_path / "c.zarr", keep=Keep(layers="1:3", heads="0,2")).path
    attention, whole = attnlens.open(path)[0].attention, attnlens.open(store)[0].attention
    np.testing.assert_array_equal(attention.rows(5, [1, 2], [0, 2]), whole.rows(5, [1, 2], [0, 2]))
    with pytest.raises(AbsentError, match="head 1 was cropped away; there are 0, 2"):
        attention.rows(5, [1, 2])
    with pytest.raises(AbsentError, match="layer 0 was cropped away; there are 1, 2"):
        attention.rows(5, heads=[0])
    with pytest.raises(AbsentError, match="head 1 was cropped away"):
        render(path, tmp_path / "p", options=RenderOptions(heads="median"))
    assert render(path, tmp_path / "p", options=RenderOptions(heads="0,2")).count == 4


def test_absent_rows_are_said(store: Path, tmp_path: Path) -> None:
    path = crop(store, tmp_path / "c.zarr", keep=Keep(tokens="2:11", arrays=["-attention_mean"])).path
    capture = attnlens.open(path)[0]
    with pytest.raises(AbsentError, match="attention_weight of token 12 was cropped away"):
        capture.attention.rows(12)
    with pytest.raises(AbsentError, match="attention_max of token 11 was cropped away"):
        capture.attention.reduced("max", 11)
    with pytest.raises(AbsentError, match="no attention_mean: it was left out when the store was cropped"):
        capture["attention_mean"]
    with pytest.raises(AbsentError, match="cropped to other tokens"):
        render(path, tmp_path / "p", options=RenderOptions(queries="12"))
    assert render(path, tmp_path / "p").count == 2  # of the generated tokens 9 and 10


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (Keep(tokens="14"), r"--tokens 14 is out of range: there are 14 tokens \(0 … 13\)"),
        (Keep(layers="x"), "--layers 'x' is not understood"),
        (Keep(heads="5:9"), r"--heads '5:9' selects no head: there are 3 heads \(0 … 2\)"),
        (Keep(arrays=["none"]), "there is no none; it has attention_max"),
        (Keep(arrays=["-token_id"]), "--arrays -token_id: no capture can do without it"),
    ],
)
def test_what_cannot_be_kept_is_said_and_nothing_written(store: Path, tmp_path: Path, keep: Keep, words: str) -> None:
    with pytest.raises(InputError, match=words):
        crop(store, tmp_path / "c.zarr", keep=keep)
    assert list(tmp_path.iterdir()) == []


def test_eight_bits_are_within_the_stated_error(store: Path, tmp_path: Path) -> None:
    path = crop(store, tmp_path / "c.zarr", dtype="uint8").path
    assert verify(path).problems == []
    capture, whole = attnlens.open(path)[0], attnlens.open(store)[0]
    for name in ("attention_weight", "attention_max", "attention_mean"):
        array, there = capture[name], whole[name]
        assert zarr.open_array(path / "0000" / name, mode="r").dtype == np.uint8
        assert array.dtype == "float16"
        a, b = array[...], there[...]
        assert a.dtype == np.float16
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        assert np.nanmax(np.abs(a.astype(np.float64) - b)) <= array.max_error == quantize.SQRT_ERROR
    again = crop(path, tmp_path / "d.zarr", dtype="uint8").path
    np.testing.assert_array_equal(plain(again)["attention_weight"], plain(path)["attention_weight"])


def test_the_bounds_hold_for_every_weight() -> None:
    every = np.arange(0, 0x3C01, dtype=np.uint16).view(np.float16)  # all of float16 in 0 … 1
    wide = every.astype(np.float64)
    assert np.abs(quantize.decode_sqrt(quantize.encode_sqrt(every)) - wide).max() <= quantize.SQRT_ERROR
    levels = quantize.to_levels(every).astype(np.float64)
    assert np.abs(levels - wide).max() <= quantize.LEVEL_ERROR
    assert (np.minimum(np.floor(levels * 256), 255) == np.minimum(np.floor(wide * 256), 255)).all()
    assert np.isnan(quantize.to_levels(np.array([np.nan], np.float16))).all()


def test_lite_draws_the_same_default_pictures(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr", n_prompt=20, n_generated=25, without_attention=(1,))
    lite = crop(tmp_path / "run.zarr", tmp_path / "lite.zarr", keep=Keep(lite=True)).path
    assert verify(lite).problems == []
    packed = pack(lite).path
    render(tmp_path / "run.zarr", tmp_path / "a", gallery=True)
    render(packed, tmp_path / "b", gallery=True)
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")
    capture = attnlens.open(packed)[0]
    assert capture["lens_token"].shape[-1] == 1
    with pytest.raises(AbsentError, match="left out when the store was cropped"):
        capture.attention.rows(3)


def test_every_array_is_kept_or_left_out_by_lite_on_purpose() -> None:
    from attnlens.store.tools.keep import LITE

    dropped = {"lens_entropy", "next_rank", "next_probability", "attention_weight", "attention_q", "attention_k",
               "attention_mean", "value_norm", "residual", "tracked_id", "tracked_text", "tracked_rank",
               "tracked_probability", "mid_token", "mid_probability", "mid_entropy", "mid_next_rank",
               "mid_next_probability"}  # fmt: skip
    free = {
        spec.name
        for spec in ARRAYS
        if spec.axes != (spec.name,)
        and spec.presence not in ("always", "finished", "proof")
        and spec.axes != ("entry",)
    }
    assert free == LITE | dropped, "a new array: say here whether default pictures need it"


@given(st.lists(st.integers(0, 2), min_size=1, max_size=3))
@settings(SLOW, max_examples=4)
def test_merged_captures_are_those_that_were_merged(
    store: Path, tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    sources = [
        store,
        crop(store, folder / "1.zarr", keep=Keep(layers="1")).path,
        pack(store, folder / "2.zarr.zip").path,
    ]
    report = merge([sources[n] for n in order], folder / "all.zarr")
    assert verify(report.path).problems == []
    back = unpack(pack(report.path).path, folder / "back.zarr").path
    assert tree_hash(back) == tree_hash(report.path)
    for number, n in enumerate(order):
        there = plain(sources[n] if n < 2 else store)
        here = plain(back, f"{number:04d}")
        assert here.keys() == there.keys()
        for name, values in there.items():
            np.testing.assert_array_equal(here[name], values)
        alone = crop(report.path, folder / f"{number}.out.zarr", captures=[f"{number:04d}"]).path
        for name, values in plain(alone, f"{number:04d}").items():
            np.testing.assert_array_equal(values, there[name])
    if order == [0]:
        assert tree_hash(report.path / "0000") == tree_hash(store / "0000")


def test_damage_is_not_sealed_again(store: Path, tmp_path: Path) -> None:
    """A tool makes new manifests, so it must not copy what the old one would have found."""
    path = unpack(pack(store, tmp_path / "a.zarr.zip").path, tmp_path / "a.zarr").path
    file = path / "0000/key/c/0"
    file.write_bytes((path / "0000/query/c/0").read_bytes() + b"x")
    for make_store in (
        lambda: crop(path, tmp_path / "c.zarr"),
        lambda: merge([path, path], tmp_path / "m.zarr"),
    ):
        with pytest.raises(AttnlensError, match="0000/key/c/0 is not the file that was written"):
            make_store()
    document = json.loads((path / "0000/zarr.json").read_text())
    document["attributes"]["attnlens"]["completion"] = "forged"
    (path / "0000/zarr.json").write_text(json.dumps(document))
    with pytest.raises(AttnlensError, match="does not have its digest"):
        merge([store, path], tmp_path / "m.zarr")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.zarr", "a.zarr.zip"}


def test_nothing_to_merge_is_said(tmp_path: Path, store: Path) -> None:
    with pytest.raises(InputError, match="lens pack"):
        merge([store], tmp_path / "x.zarr.zip")


def test_metadata_of_a_crop_are_checked(store: Path, tmp_path: Path) -> None:
    path = crop(store, tmp_path / "c.zarr", keep=Keep(tokens="2:11")).path
    document = json.loads((path / "0000/zarr.json").read_text())
    document["attributes"]["attnlens"]["crop"]["tokens"] = [[5, 3], [0, 99]]
    (path / "0000/zarr.json").write_text(json.dumps(document))
    assert any("crop.tokens is" in str(problem) for problem in verify(path).problems)
