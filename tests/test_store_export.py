"""Exports, read back by pandas, polars, numpy, safetensors and inif, against plain zarr."""

from __future__ import annotations

import json
import math
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import inif
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import safetensors
import safetensors.torch
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlens.schemas.errors import AbsentError, InputError, MissingExtraError, StoreError
from attnlens.store.tools import exports, lens_table, npz, parquet, raw
from attnlens.store.tools.crop import crop
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.inif import export_inif
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.npz import export_npz
from attnlens.store.tools.pack import pack
from attnlens.store.tools.parquet import export_parquet
from attnlens.store.tools.safetensors import export_safetensors
from attnlens.store.writer import StoreWriter
from plain_bits import own_order
from store_sample import Sample
from test_cli_help import run
from test_store_evidence import Half, Rich

FEW = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ARCHIVED = Path(__file__).parent / "stores" / "format-1.zarr"
EXPORTS: dict[str, Callable[..., Any]] = {
    "parquet": export_parquet,
    "npz": export_npz,
    "safetensors": export_safetensors,
    "inif.json": export_inif,
    "h5": export_hdf5,
}
COLUMNS = [column.name for column in lens_table.COLUMNS]


def groups(store: Path) -> dict[str, Any]:
    root = zarr.open_group(store, mode="r", use_consolidated=False)
    return {name: zarr.open_group(store / name, mode="r", use_consolidated=False) for name in sorted(root.group_keys())}


def number(value: Any) -> Any:
    """A cell as Python has it, None where it is the fill value."""
    plain = value.item()
    if isinstance(plain, float):
        return None if math.isnan(plain) else plain
    return None if plain == -1 else plain


def plain_rows(store: Path) -> Iterator[dict[str, Any]]:
    """The table cell by cell, from what plain zarr reads."""
    for capture, group in groups(store).items():
        about = group.attrs["attnlens"]
        arrays = {name: array[...] for name, array in group.arrays()}
        if "vocabulary_id" not in arrays:
            continue
        ids = arrays["vocabulary_id"].tolist()
        vocabulary = dict(zip(ids, map(str, arrays["vocabulary_text"].tolist()), strict=True))
        tables = []
        for place, lens in enumerate([about["lens"], *about.get("lenses", [])]):
            end = f"_{lens['name']}" if place else ""
            each = {
                "lens_entropy": f"lens_entropy{end}",
                "next_rank": f"next_rank{end}",
                "next_probability": f"next_probability{end}",
            }
            tables.append((lens["name"], False, False, f"lens_token{end}", f"lens_probability{end}", each))
            tables.append((lens["name"], False, True, f"tracked_rank{end}", f"tracked_probability{end}", each))
        each = {"lens_entropy": "mid_entropy", "next_rank": "mid_next_rank", "next_probability": "mid_next_probability"}
        tables.append(("logit", True, False, "mid_token", "mid_probability", each))
        for lens_name, mid, tracked, first, second, each in tables:
            if first not in arrays:
                continue
            deep, _, choices = arrays[first].shape
            for t in range(about["committed"]):
                if t < about.get("lens_first", 0):
                    continue
                for d in range(deep):
                    for r in range(choices):
                        one, likely = number(arrays[first][d, t, r]), number(arrays[second][d, t, r])
                        if one is None and likely is None:
                            continue
                        told = number(arrays["token_id"][t])
                        chosen = number(arrays["tracked_id"][r]) if tracked else one
                        row = {
                            "capture": capture,
                            "prompt_id": about.get("prompt_id"),
                            "lens": lens_name,
                            "token": int(arrays["token"][t]),
                            "token_id": told,
                            "token_text": None if told is None else str(arrays["token_text"][t]),
                            "token_special": None if told is None else bool(arrays["token_special"][t]),
                            "generated": t >= about["n_prompt"],
                            "depth": int(arrays["layer" if mid else "depth"][d]),
                            "mid": mid,
                            "rank": one if tracked else r,
                            "tracked": tracked,
                            "lens_token": chosen,
                            "lens_text": str(arrays["tracked_text"][r]) if tracked else vocabulary.get(chosen),
                            "lens_probability": likely,
                            "model_probability": number(arrays["model_probability"][t]),
                        }
                        cells = {name: number(arrays[array][d, t]) for name, array in each.items() if array in arrays}
                        yield {**dict.fromkeys(COLUMNS), **row, **cells}


def check_table(store: Path, file: Path) -> int:
    """The file has exactly the rows that plain zarr finds, for polars and for pandas; how many."""
    expected = list(plain_rows(store))
    assert pl.read_parquet(file).to_dicts() == expected
    table = pd.read_parquet(file)
    assert list(table.columns) == COLUMNS
    assert len(table) == len(expected)
    for name in ("lens_probability", "lens_entropy", "next_probability", "model_probability"):
        wanted = [math.nan if row[name] is None else row[name] for row in expected]
        np.testing.assert_array_equal(table[name].to_numpy(np.float64), np.asarray(wanted, np.float64), err_msg=name)
    return len(expected)


def arrays_of(group: Any) -> dict[str, Any]:
    return {name: array for name, array in group.arrays() if not name.startswith("manifest_")}


def bits_of(array: Any) -> bool:
    return bool(array.attrs["attnlens"].get("bits") == "bfloat16")


def check_npz(store: Path, file: Path) -> None:
    with np.load(file, allow_pickle=False) as found:
        expected = {"document"}
        for capture, group in groups(store).items():
            expected |= {f"{capture}/document"}
            about = json.loads(found[f"{capture}/document"].item())["attnlens"]
            assert about["status"] == group.attrs["attnlens"]["status"]
            for name, array in arrays_of(group).items():
                key = f"{capture}/{name}"
                expected.add(key)
                values = cut(array, about, group)
                if bits_of(array):
                    assert found[key].dtype == np.float32
                    np.testing.assert_array_equal(
                        found[key].view(np.uint32), values.astype(np.uint32) << 16, err_msg=key
                    )
                elif found[key].dtype.kind == "U":
                    assert found[key].tolist() == [str(text).replace("\0", "␀") for text in values.tolist()]
                else:
                    assert found[key].dtype == (values.dtype if "encoding" not in array.attrs["attnlens"] else "f2")
                    np.testing.assert_array_equal(found[key], decoded(array, values), err_msg=key)
        assert set(found.files) == expected


def check_tensors(store: Path, file: Path) -> None:
    tensors = safetensors.torch.load_file(file)
    with safetensors.safe_open(file, "np") as opened:
        about = opened.metadata()
    names = set()
    for capture, group in groups(store).items():
        said = json.loads(about[capture])["attnlens"]
        assert said["status"] == group.attrs["attnlens"]["status"]
        for name, array in arrays_of(group).items():
            key = f"{capture}/{name}"
            values = cut(array, said, group)
            if values.dtype.kind in "OT":
                assert json.loads(about[key]) == [str(text) for text in values.tolist()]
                continue
            names.add(key)
            if bits_of(array):
                assert tensors[key].dtype == torch.bfloat16
                np.testing.assert_array_equal(tensors[key].view(torch.uint16).numpy(), values, err_msg=key)
            else:
                found = tensors[key].numpy()
                assert found.shape == values.shape
                np.testing.assert_array_equal(found, decoded(array, values), err_msg=key)
    assert set(tensors) == names


def cut(array: Any, about: dict[str, Any], group: Any) -> Any:
    """What plain zarr reads, without what lies beyond the timeline of a capture that ended early, or in its lists."""
    lengths = {"token": about["n_token"], "query": about["n_token"], "key": about["n_token"],
               "generated": about["n_token"] - about["n_prompt"] + 1, "edge": about["n_token"] + 1}  # fmt: skip
    lengths["byte"] = max(group["token_byte_offset"][: about["n_token"] + 1].tolist(), default=0)
    if "vocabulary_id" in group:
        lengths["entry"] = int((group["vocabulary_id"][...] >= 0).sum())
    return own_order(array, array[tuple(slice(0, lengths.get(axis)) for axis in array.metadata.dimension_names)])


def decoded(array: Any, values: Any) -> Any:
    """8-bit square roots as the weights that docs/format.md says they are."""
    if "encoding" not in array.attrs["attnlens"]:
        return values
    weights = ((values.astype(np.float64) / 254) ** 2).astype(np.float16)
    weights[values == 255] = np.nan
    return weights


def check_inif(store: Path, file: Path) -> None:
    document = inif.load(file)
    known = {name: group for name, group in groups(store).items() if "token_id" in group}
    assert [sample.id for sample in document.samples] == list(known)
    for sample, (_, group) in zip(document.samples, known.items(), strict=True):
        about = group.attrs["attnlens"]
        ids, texts = group["token_id"][: about["n_token"]].tolist(), group["token_text"][: about["n_token"]].tolist()
        special = group["token_special"][: about["n_token"]].tolist()
        assert [token.id for token in sample.tokens] == ids
        assert [token.token for token in sample.tokens] == [
            None if i < 0 else str(t) for i, t in zip(ids, texts, strict=True)
        ]
        assert [getattr(token, "tags", []) == ["special"] for token in sample.tokens] == special
        spans = {span.name: span.positions for span in sample.spans}
        n_prompt, n_token = about["n_prompt"], about["n_token"]
        wanted = {
            "prompt": range(n_prompt),
            "generated": range(n_prompt, n_token),
            "absent": np.flatnonzero(np.less(ids, 0)),
        }
        assert spans == {name: list(places) for name, places in wanted.items() if len(places)}
        likely = group["model_probability"][:]
        for t, token in enumerate(sample.tokens):
            before = likely[t - 1] if t else math.nan
            assert getattr(token, "logprob", None) == (math.log(float(before)) if before > 0 else None)
            check_readings(group, t, getattr(token, "data", {}))
        assert [t.id for t in sample.get_tokens_by_positions(spans["prompt"])] == ids[:n_prompt]
        if -1 in ids:
            assert "".join(t.token or "" for t in sample.get_expanded_tokens(document.sequences)) == "".join(
                map(str, texts)
            )


def check_readings(group: Any, t: int, data: dict[str, Any]) -> None:
    about = group.attrs["attnlens"]
    found = set()
    for place, lens in enumerate([about["lens"], *about.get("lenses", [])] if about["lens"] else []):
        end = f"_{lens['name']}" if place else ""
        ids = group[f"lens_token{end}"][:, t, 0] if t < group["lens_token"].shape[1] else np.full(1, -1)
        there = np.flatnonzero(ids >= 0)
        if not len(there) or t >= about["committed"]:
            continue
        found.add(f"{lens['name']}_lens")
        told = data[f"{lens['name']}_lens"]
        vocabulary = dict(zip(group["vocabulary_id"][:].tolist(), group["vocabulary_text"][:].tolist(), strict=True))
        assert told["depth"] == there.tolist()
        assert told["id"] == ids[there].tolist()
        assert told["text"] == [str(vocabulary[i]) for i in told["id"]]
        np.testing.assert_array_equal(told["probability"], group[f"lens_probability{end}"][there, t, 0])
        if "entropy" in told:
            np.testing.assert_array_equal(told["entropy"], group[f"lens_entropy{end}"][there, t])
    assert set(data) == found


def check_all(store: Path, folder: Path) -> None:
    made = {end: EXPORTS[end](store, folder / f"run.{end}", overwrite=True) for end in EXPORTS if end != "h5"}
    assert all(report.bytes == (folder / f"run.{end}").stat().st_size for end, report in made.items())
    check_table(store, folder / "run.parquet")
    check_npz(store, folder / "run.npz")
    check_tensors(store, folder / "run.safetensors")
    check_inif(store, folder / "run.inif.json")


@given(
    kind=st.sampled_from([Sample, Rich, Half]),
    prompt=st.integers(1, 40),
    generated=st.integers(0, 6),
    none=st.sets(st.integers(0, 2), max_size=2),
    seed=st.integers(0, 9),
)
@FEW
def test_every_number_is_that_of_plain_zarr(
    tmp_path_factory: pytest.TempPathFactory, kind: type[Sample], prompt: int, generated: int, none: set[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("export")
    sample = kind(n_prompt=prompt, n_generated=generated, none_layers=tuple(none), seed=seed, feed_all=not generated)
    sample.write(folder / "run.zarr")
    Sample(seed=seed + 1).write(StoreWriter.create(folder / "run.zarr", append=True))
    check_all(folder / "run.zarr", folder)


@given(
    tokens=st.sampled_from([None, "3:9", "0,2,11"]),
    layers=st.sampled_from([None, "1:2"]),
    arrays=st.sampled_from([(), ("-lens_entropy",), ("-lens_token", "-next_rank"), ("lens_probability", "residual")]),
    lite=st.booleans(),
    redact=st.sampled_from([(), ("4:6",)]),
    dtype=st.sampled_from([None, "uint8"]),
)
@FEW
def test_what_was_cut_away_is_absent(tmp_path_factory: pytest.TempPathFactory, **how: Any) -> None:
    folder = tmp_path_factory.mktemp("crop")
    Half(n_prompt=8, n_generated=5).write(folder / "whole.zarr")
    redact, dtype = how.pop("redact"), how.pop("dtype")
    crop(folder / "whole.zarr", folder / "run.zarr", keep=Keep(**how), redact=redact, dtype=dtype)
    made = {end: EXPORTS[end](folder / "run.zarr", folder / f"run.{end}") for end in ("npz", "safetensors")}
    assert [report.captures for report in made.values()] == [["0000"], ["0000"]]
    check_npz(folder / "run.zarr", folder / "run.npz")
    check_tensors(folder / "run.zarr", folder / "run.safetensors")
    if "lens_token" in groups(folder / "run.zarr")["0000"]:
        export_parquet(folder / "run.zarr", folder / "run.parquet")
        assert check_table(folder / "run.zarr", folder / "run.parquet") > 0
        if "lens_probability" in groups(folder / "run.zarr")["0000"]:
            export_inif(folder / "run.zarr", folder / "run.inif.json")
            check_inif(folder / "run.zarr", folder / "run.inif.json")


def test_the_archived_store_packed(tmp_path: Path) -> None:
    pack(ARCHIVED, tmp_path / "run.zarr.zip")
    for end in ("parquet", "npz", "safetensors"):
        EXPORTS[end](tmp_path / "run.zarr.zip", tmp_path / f"run.{end}")
    check_table(ARCHIVED, tmp_path / "run.parquet")
    check_npz(ARCHIVED, tmp_path / "run.npz")
    check_tensors(ARCHIVED, tmp_path / "run.safetensors")


def test_a_capture_that_ended_early_and_one_that_never_began(tmp_path: Path) -> None:
    store, sample = tmp_path / "run.zarr", Sample(n_generated=6)
    with StoreWriter.create(store).capture(sample.metadata(), capacity=20) as out:
        sample.prompt(out)
        sample.step(out, sample.n_prompt)
        out.fail("the power went")
    check_all(store, tmp_path)
    assert "0001" not in groups(store)
    without = Sample(lens=False)
    without.write(StoreWriter.create(store, append=True))
    made = export_parquet(store, tmp_path / "run.parquet", overwrite=True)
    assert made.notes == [
        "no rows of capture 0001: it was captured without a lens (no head); the table is of what lenses read"
    ]
    check_table(store, tmp_path / "run.parquet")
    with pytest.raises(AbsentError, match=r"capture 0001: it was captured without a lens"):
        export_parquet(store, tmp_path / "none.parquet", captures=["0001"])
    assert not (tmp_path / "none.parquet").exists()


def test_large_arrays_are_put_together_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Half(n_prompt=17, n_generated=4, none_layers=(1,)).write(tmp_path / "run.zarr")
    before = {}
    for end in ("npz", "safetensors", "parquet"):
        EXPORTS[end](tmp_path / "run.zarr", tmp_path / f"run.{end}")
        before[end] = (tmp_path / f"run.{end}").read_bytes()
    monkeypatch.setattr(raw, "HELD_BYTES", 64)
    monkeypatch.setattr(exports, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(lens_table, "BLOCK_ROWS", 9)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)
    check_all(tmp_path / "run.zarr", tmp_path)
    assert (tmp_path / "run.npz").read_bytes() == before["npz"]
    assert (tmp_path / "run.safetensors").read_bytes() == before["safetensors"]
    sizes = [pq.ParquetFile(tmp_path / "run.parquet").metadata.row_group(i).num_rows for i in range(3)]
    assert all(100 <= size < 120 for size in sizes)
    monkeypatch.delattr("os.posix_fallocate")
    export_safetensors(tmp_path / "run.zarr", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == before["safetensors"]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Sample(n_prompt=500, n_generated=12, n_layer=6, n_head=4).write(tmp_path / "run.zarr")
    monkeypatch.setattr(raw, "HELD_BYTES", 1 << 16)
    monkeypatch.setattr(exports, "BLOCK_BYTES", 1 << 20)
    for end in ("npz", "safetensors"):
        EXPORTS[end](ARCHIVED, tmp_path / f"first.{end}")  # imports
        tracemalloc.start()
        EXPORTS[end](tmp_path / "run.zarr", tmp_path / f"run.{end}")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20 < 6 * 4 * 512 * 512 * 2, end  # less than the weights alone


def test_units_and_meanings_are_in_the_table(tmp_path: Path) -> None:
    export_parquet(ARCHIVED, tmp_path / "run.parquet", captures=["0000"])
    schema = pq.read_schema(tmp_path / "run.parquet")
    assert schema.field("lens_entropy").metadata[b"unit"] == b"nat"
    about = json.loads(schema.metadata[b"attnlens"])
    stored = groups(ARCHIVED)["0000"].attrs["attnlens"]
    assert about["captures"].keys() == {"0000"}
    assert about["captures"]["0000"]["model"]["id"] == stored["model"]["id"]
    assert about["captures"]["0000"]["lenses"][0]["hash"] == stored["lens"]["hash"]


@pytest.mark.parametrize("end", list(EXPORTS))
def test_damage_leaves_nothing(tmp_path: Path, end: str) -> None:
    store = tmp_path / "run.zarr"
    Sample().write(store)
    for name in ("lens_token", "attention_weight"):
        file = next(file for file in (store / "0000" / name / "c").rglob("*") if file.is_file())
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 4
        file.write_bytes(data)
    with pytest.raises(StoreError, match=r"0000/(lens_token|attention_weight)"):
        EXPORTS[end](store, tmp_path / f"run.{end}")
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("end", list(EXPORTS))
def test_captures_are_chosen_and_files_not_replaced_unasked(tmp_path: Path, end: str) -> None:
    file = tmp_path / f"run.{end}"
    store = tmp_path / "run.zarr"
    for seed in range(2):
        Sample(seed=seed).write(StoreWriter.create(store, append=seed > 0))
    assert EXPORTS[end](store, file, captures=["0001", "0001"]).captures == ["0001"]
    before = file.read_bytes()
    with pytest.raises(InputError, match="exists"):
        EXPORTS[end](store, file)
    with pytest.raises(AbsentError, match="has no capture '7'"):
        EXPORTS[end](store, tmp_path / "other", captures=["7"])
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, "run.zarr"])


@pytest.mark.parametrize("end", ["npz", "safetensors", "inif.json", "inif"])
def test_equal_stores_give_equal_files(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = EXPORTS.get(end, export_inif)
    write(ARCHIVED, tmp_path / f"one.{end}", captures=["0001"])
    monkeypatch.setattr("time.time", lambda: 2e9)
    write(ARCHIVED, tmp_path / f"two.{end}", captures=["0001"])
    assert (tmp_path / f"one.{end}").read_bytes() == (tmp_path / f"two.{end}").read_bytes()


def test_a_compressed_document_and_the_viewer_of_the_package(tmp_path: Path) -> None:
    Sample().write(tmp_path / "run.zarr")
    for name in ("run.inif", "run.inif.json.gz"):
        export_inif(tmp_path / "run.zarr", tmp_path / name)
        assert (tmp_path / name).read_bytes()[:2] == b"\x1f\x8b"
        check_inif(tmp_path / "run.zarr", tmp_path / name)
    document = inif.load(tmp_path / "run.inif")
    inif.save_html(document, tmp_path / "run.html")
    assert "generated" in (tmp_path / "run.html").read_text()
    span = inif.select_by_span(document.samples[0], "generated")
    assert [token.id for token in span.tokens] == [token.id for token in document.samples[0].tokens[5:]]


def test_a_document_is_of_one_model(tmp_path: Path) -> None:
    Sample().write(tmp_path / "run.zarr")

    class Other(Sample):
        def metadata(self, **changes: Any) -> Any:
            about = super().metadata(**changes)
            return about.model_copy(update={"model": about.model.model_copy(update={"id": "other"})})

    Other().write(StoreWriter.create(tmp_path / "run.zarr", append=True))
    with pytest.raises(InputError, match="of one model, and these are other, synthetic; choose with --capture"):
        export_inif(tmp_path / "run.zarr", tmp_path / "run.inif.json")


def test_a_text_that_would_fill_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample()
    sample.texts[2], sample.texts[3] = "x" * 400, "nul\0"
    sample.write(tmp_path / "run.zarr")
    check_all(tmp_path / "run.zarr", tmp_path)
    monkeypatch.setattr(npz, "TEXT_BYTES", 4 * 399 * sample.n_token)
    with pytest.raises(StoreError, match=r"0000/token_text: one text has 400 characters, .* each of 9 as much room"):
        export_npz(tmp_path / "run.zarr", tmp_path / "again.npz")
    assert not (tmp_path / "again.npz").exists()


def test_more_text_than_a_header_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlens.store.tools.safetensors.HEADER_BYTES", 1000)
    with pytest.raises(InputError, match=r"more than the 1000 .*: choose fewer captures with --capture"):
        export_safetensors(ARCHIVED, tmp_path / "run.safetensors")


def test_an_id_without_a_text_is_told(tmp_path: Path) -> None:
    sample = Sample()
    sample.lens_arrays["lens_token"][1, 2, 0] = 77
    sample.write(tmp_path / "run.zarr")
    for end in ("parquet", "inif.json"):
        with pytest.raises(StoreError, match="0000/vocabulary_id: has no id 77, which a lens reads"):
            EXPORTS[end](tmp_path / "run.zarr", tmp_path / f"run.{end}")


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "inif", None)
    for end, words in (("parquet", "parquet needs pyarrow"), ("inif.json", "INIF needs inif")):
        extra = end.removesuffix(".json")
        with pytest.raises(MissingExtraError, match=rf"{words}, .*: pip install 'attnlens\[{extra}\]'$"):
            EXPORTS[end](ARCHIVED, tmp_path / f"run.{end}")
    assert not list(tmp_path.iterdir())


def test_the_command_takes_the_form_from_option_or_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lens = partial(run, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for form, name in (
        ("parquet", "format-1.parquet"),
        ("npz", "format-1.npz"),
        ("safetensors", "format-1.safetensors"),
    ):
        assert lens("export", str(ARCHIVED), "--format", form, "-q") == 0
        assert capsys.readouterr().out.startswith(f"{name}: 2 captures, ")
        assert (tmp_path / name).exists()
    assert lens("export", str(ARCHIVED), "one.INIF.json", "--capture", "0001", "-q") == 0
    assert [sample.id for sample in inif.load("one.INIF.json").samples] == ["0001"]
    assert lens("export", str(ARCHIVED), "table.data", "--format", "parquet", "-q") == 0
    check_table(ARCHIVED, tmp_path / "table.data")
    capsys.readouterr()
    assert lens("export", str(ARCHIVED), "a.npz", "--format", "csv") == 1
    assert lens("export", str(ARCHIVED), "a.npz", "--format", "npz", "--hdf5") == 1
    assert capsys.readouterr().err.splitlines() == [
        "lens: --format csv: there is no such form; expected html, hdf5, parquet, npz, safetensors, inif",
        "lens: --format npz and --hdf5 were given; expected one of them",
    ]


def test_the_page_about_it_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    Sample().write(tmp_path / "run.zarr")
    for end, write in EXPORTS.items():
        write(tmp_path / "run.zarr", tmp_path / f"run.{end}")
    monkeypatch.chdir(tmp_path)
    for part in page.split("```python\n")[1:]:
        exec(compile(part.split("```")[0], "export.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    group = groups(tmp_path / "run.zarr")["0000"]
    assert said[:2] == ["(4, 8)", "(4, 2)"]
    assert said[2] == f"synthetic (3, 2, 9) {group['token_text'][:2].tolist()}"
    assert said[3] == "[3, 2, 9, 9] 9"
    logprob = round(math.log(float(group["model_probability"][4])), 1)
    top = group["lens_token"][-1, 5, 0]
    assert "\n".join(said[4:]) == f"{str(group['token_text'][5])!r} {logprob} {Sample().words[top]}"
    listed = page.split("| column | |\n|---|---|\n")[1].split("\n\n")[0]
    names = [name.strip("` ") for line in listed.splitlines() for name in line.split("|")[1].split(",")]
    assert sorted(names) == sorted(COLUMNS)
