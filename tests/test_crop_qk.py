"""Crops of captures that keep queries and keys: rows of what stays, and no key of a token that went."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner

import attnlens
from attnlens.capture import capture
from attnlens.cli import app
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import AbsentError
from attnlens.store.reader import Capture
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.merge import merge
from attnlens.store.tools.npz import export_npz
from attnlens.store.tools.pack import pack, unpack
from attnlens.store.verify import verify
from families import byte_tokenizer, tiny_model
from store_sample import Sample
from test_store_qk import Vectors

KINDS = ("full", "sliding", "none", "chunked", "softcap", "sinks", "shared")
FORMAT = 6e-4
"""Half a step of float16 below 1, and what float32 adds."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vectors]:
    path = tmp_path_factory.mktemp("qk") / "run.zarr"
    sample = Vectors(kinds=KINDS, dtype="bfloat16", n_prompt=30, n_generated=9)
    sample.write(path)
    return path, sample


def opened(path: Path) -> Capture:
    found = attnlens.open(path)[0]
    assert verify(path).problems == []
    return found


def plain(path: Path) -> Any:
    group: Any = zarr.open_group(path, mode="r")["0000"]
    return group


def only_what_is_indexed(folder: Path, count: int) -> bool:
    """Whether the shards of an array hold nothing but the chunks that their indexes name, by the Zarr specification."""
    for file in (folder / "c").rglob("*"):
        if file.is_file():
            entries = np.frombuffer(file.read_bytes()[-16 * count - 4 : -4], "<u8").reshape(count, 2)
            if file.stat().st_size != 16 * count + 4 + int(entries[entries[:, 0] != 2**64 - 1, 1].sum()):
                return False
    return True


@pytest.mark.parametrize("tokens", ["12:31", "5,7,20-22", "37", "1:"])
def test_rows_of_later_tokens_are_dense_and_what_the_formula_gives(
    made: tuple[Path, Vectors], tmp_path: Path, tokens: str
) -> None:
    path, sample = made
    report = crop(path, tmp_path / "part.zarr", keep=Keep(tokens=tokens))
    numbers = range(sample.n_token)
    kept = {"12:31": numbers[12:31], "5,7,20-22": [5, 7, 20, 21, 22], "37": [37], "1:": numbers[1:]}[tokens]
    assert [note.split(":")[0] for note in report.notes] == ["capture 0000"]
    assert "dense attention" in report.notes[0]
    found = opened(tmp_path / "part.zarr")
    assert (found.metadata.attention, found.metadata.attention_dtype) == ("dense", None)
    assert not {"attention_q", "attention_k", "kv_head", "head_feature"} & set(found.names)
    assert not {"attention_q", "attention_k"} & {each.name for each in (tmp_path / "part.zarr" / "0000").iterdir()}
    cells = plain(tmp_path / "part.zarr")["attention_weight"][...]
    expected = np.full(cells.shape, np.nan)
    for query in kept:
        if query < sample.n_fed:
            expected[:, :, query, list(kept)] = sample.rows()[:, :, query, list(kept)]
    np.testing.assert_array_equal(np.isnan(cells), np.isnan(expected))
    np.testing.assert_allclose(cells, expected, atol=FORMAT)
    fed = [query for query in kept if query < sample.n_fed]
    np.testing.assert_array_equal(
        found.attention.rows(fed, layers=[3], heads=[-1]), cells[3:4, 3:4, fed].astype(np.float32)
    )
    with pytest.raises(AbsentError, match="of token 0 was cropped away"):
        found.attention.rows(0)


def test_the_first_tokens_keep_their_queries_and_keys_and_no_others(made: tuple[Path, Vectors], tmp_path: Path) -> None:
    path, sample = made
    report = crop(path, tmp_path / "part.zarr", keep=Keep(tokens="0:12"))
    assert report.notes == []
    found = opened(tmp_path / "part.zarr")
    assert found.metadata.attention == "qk"
    rows = found.attention.rows(slice(0, 12))
    np.testing.assert_allclose(rows[..., :12], sample.rows()[:, :, :12, :12], atol=2e-6)
    assert np.isnan(rows[..., 12:]).all()
    for name in ("attention_q", "attention_k"):
        array = plain(tmp_path / "part.zarr")[name]
        assert np.unique(array[12:]).tolist() == [array.fill_value]
        assert np.isnan(found[name][12:]).all()
        inside = int(np.prod([shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]))
        assert only_what_is_indexed(tmp_path / "part.zarr" / "0000" / name, inside)
    again = crop(tmp_path / "part.zarr", tmp_path / "less.zarr", keep=Keep(tokens="3:8"))
    assert len(again.notes) == 1
    less = opened(tmp_path / "less.zarr")
    np.testing.assert_allclose(less.attention.rows([7])[..., 3:8], sample.rows()[:, :, [7], 3:8], atol=FORMAT)
    direct = crop(path, tmp_path / "direct.zarr", keep=Keep(tokens="3:8"))
    assert direct.notes == again.notes
    for name in less.names:
        if not name.startswith("manifest_"):
            np.testing.assert_array_equal(less[name][...], attnlens.open(direct.path)[0][name][...], name)


def test_layers_that_use_the_keys_of_others_keep_their_rows(made: tuple[Path, Vectors], tmp_path: Path) -> None:
    path, sample = made
    report = crop(path, tmp_path / "part.zarr", keep=Keep(layers="5,6", heads="1,2"))
    assert len(report.notes) == 1
    rows = opened(tmp_path / "part.zarr").attention.rows([3, 35], layers=[6, 5], heads=[2])
    np.testing.assert_allclose(rows, sample.rows()[[6, 5]][:, [2]][:, :, [3, 35]], atol=FORMAT)
    assert crop(path, tmp_path / "both.zarr", keep=Keep(layers="0,6")).notes == []
    rows = opened(tmp_path / "both.zarr").attention.rows([3, 35], layers=[6])
    np.testing.assert_allclose(rows, sample.rows()[[6]][:, :, [3, 35]], atol=2e-6)


def test_rows_in_eight_bits_heads_and_layers_at_once(made: tuple[Path, Vectors], tmp_path: Path) -> None:
    path, sample = made
    crop(path, tmp_path / "part.zarr", keep=Keep(tokens="20:", layers="1,3,5", heads="0,3"), dtype="uint8")
    found = opened(tmp_path / "part.zarr")
    assert plain(tmp_path / "part.zarr")["attention_weight"].dtype == np.uint8
    rows = found.attention.rows([21, 36], layers=[5, 3, 1], heads=[3])
    expected = sample.rows()[[5, 3, 1]][:, [3]][:, :, [21, 36]]
    expected[..., :20] = np.nan
    np.testing.assert_allclose(rows, expected, atol=0.0041 + FORMAT)
    assert found.metadata.crop is not None
    assert found.metadata.crop.errors["attention_weight"] == pytest.approx(found["attention_weight"].max_error)


def test_attention_that_was_left_out_is_not_made(made: tuple[Path, Vectors], tmp_path: Path) -> None:
    path, _ = made
    for keep in (Keep(tokens="20:", lite=True), Keep(tokens="20:", arrays=["-attention_k"])):
        report = crop(path, tmp_path / "part.zarr", keep=keep, overwrite=True)
        assert report.notes == []
        with pytest.raises(AbsentError, match="left out when the store was cropped"):
            opened(tmp_path / "part.zarr").attention.rows(25)


def test_a_capture_that_was_cut_short_keeps_the_rows_it_has(tmp_path: Path) -> None:
    sample = Vectors(kinds=("full", "sliding"), n_prompt=20, n_generated=9)
    from attnlens.store.writer import StoreWriter

    writer = StoreWriter.create(tmp_path / "run.zarr")
    sample.name = writer.new_id()
    with pytest.raises(RuntimeError), writer.capture(sample.metadata(), capacity=40) as out:  # noqa: PT012
        sample.prompt(out)
        for row in range(20, 24):
            sample.step(out, row)
        raise RuntimeError
    assert attnlens.open(tmp_path / "run.zarr")[0].status == "partial"
    crop(tmp_path / "run.zarr", tmp_path / "part.zarr", keep=Keep(tokens="15:23"))
    found = attnlens.open(tmp_path / "part.zarr")[0]
    committed = found.committed
    assert (found.status, found.metadata.attention) == ("partial", "dense")
    rows = found.attention.rows(range(15, min(23, committed)))
    expected = sample.rows()[:, :, 15 : min(23, committed), : found.n_token]
    np.testing.assert_allclose(rows[..., 15:23], expected[..., 15:23], atol=FORMAT)
    assert verify(tmp_path / "part.zarr").problems == verify(tmp_path / "run.zarr").problems


def test_cropped_rows_are_merged_packed_redacted_exported_and_drawn(made: tuple[Path, Vectors], tmp_path: Path) -> None:
    path, sample = made
    part = crop(path, tmp_path / "part.zarr", keep=Keep(tokens="20:")).path
    Sample().write(tmp_path / "other.zarr")
    rows = sample.rows()[:, :, [25]]
    rows[..., :20] = np.nan

    def check(found: Capture, layers: Any = slice(None)) -> None:
        np.testing.assert_allclose(found.attention.rows([25], layers=layers), rows[layers], atol=FORMAT)

    pack(part, tmp_path / "part.zarr.zip")
    check(opened(tmp_path / "part.zarr.zip"))
    unpack(tmp_path / "part.zarr.zip", tmp_path / "again.zarr")
    check(opened(tmp_path / "again.zarr"))
    merge([tmp_path / "other.zarr", part], tmp_path / "all.zarr")
    assert verify(tmp_path / "all.zarr").problems == []
    check(attnlens.open(tmp_path / "all.zarr")[-1])
    crop(part, tmp_path / "safe.zarr", redact=["22:24"])
    check(opened(tmp_path / "safe.zarr"))
    export_npz(part, tmp_path / "part.npz")
    with np.load(tmp_path / "part.npz") as arrays:
        (name,) = (name for name in arrays if name.endswith("attention_weight"))
        np.testing.assert_allclose(arrays[name][:, :, [25]], rows, atol=FORMAT)
    drawn = render(part, tmp_path / "pictures", options=RenderOptions(queries="25,32", heads="mean"))
    assert drawn.count


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same run of a model, captured in both modes."""
    folder = tmp_path_factory.mktemp("both")
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 4
    for mode in ("dense", "qk"):
        capture(model, byte_tokenizer(), "Who is Bob's sister?", folder / f"{mode}.zarr", raw=True, max_new_tokens=6,
                temperature=0, attention=mode)  # fmt: skip
    return lambda mode: folder / f"{mode}.zarr"


@pytest.mark.parametrize("keep", [Keep(tokens="9:15"), Keep(tokens="4,8-11,20:", layers="1", heads="0,2")], ids=repr)
def test_it_is_what_a_crop_of_the_dense_capture_is(both: Callable[[str], Path], tmp_path: Path, keep: Keep) -> None:
    for mode in ("dense", "qk"):
        crop(both(mode), tmp_path / f"{mode}.zarr", keep=keep)
        assert verify(tmp_path / f"{mode}.zarr").problems == []
    dense, qk = plain(tmp_path / "dense.zarr"), plain(tmp_path / "qk.zarr")
    assert sorted(dense) == sorted(qk)
    for name, array in dense.arrays():
        if name.startswith("manifest_"):
            continue
        cells, other = array[...], qk[name][...]
        assert (array.shape, array.dtype) == (qk[name].shape, qk[name].dtype), name
        if cells.dtype.kind == "f":
            np.testing.assert_allclose(other, cells, atol=FORMAT, err_msg=name)
        else:
            np.testing.assert_array_equal(other, cells, name)


def test_the_command_says_so_in_one_line(both: Callable[[str], Path], tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["crop", str(both("qk")), "--tokens", "9:15", "-o", str(tmp_path / "a.zarr"), "-q"])
    assert said.exit_code == 0
    assert [line.split(",")[0] for line in said.stderr.splitlines()] == [
        "note: capture 0000: keys of tokens or layers that were left out are needed for rows that stay"
    ]
    told = CliRunner().invoke(
        app, ["crop", str(both("qk")), "--tokens", "9:15", "-o", str(tmp_path / "b.zarr"), "-q", "--json"]
    )
    assert len(json.loads(told.stdout)["notes"]) == 1


def test_rows_that_need_redacted_keys_are_refused_by_name(made: tuple[Path, Vectors], tmp_path: Path) -> None:
    path, sample = made
    crop(path, tmp_path / "safe.zarr", redact=["8:10"])
    rows = opened(tmp_path / "safe.zarr").attention.rows
    np.testing.assert_allclose(rows([5, 7], layers=[0, 4]), sample.rows()[[0, 4]][:, :, [5, 7]], atol=2e-6)
    np.testing.assert_allclose(rows([8, 30], layers=[4, 5]), sample.rows()[[4, 5]][:, :, [8, 30]], atol=2e-6)
    for query in (8, 30):
        with pytest.raises(AbsentError, match=r"layer 0 has no attention from token 8 on.*redacted"):
            rows(query, layers=[0])
