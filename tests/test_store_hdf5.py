"""HDF5 and back, against plain h5py and plain zarr."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.schemas.errors import AbsentError, InputError, StoreError
from attnlens.store.descriptions import Limits
from attnlens.store.tools.crop import crop
from attnlens.store.tools.hdf5 import export_hdf5
from attnlens.store.tools.hdf5_import import convert, import_hdf5
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample
from test_cli_help import run

SLOW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ARCHIVED = Path(__file__).parent / "stores" / "format-1.zarr"


def captures(store: Path) -> dict[str, Any]:
    root = zarr.open_group(store, mode="r", use_consolidated=False)
    return {name: zarr.open_group(store / name, mode="r", use_consolidated=False) for name in root.group_keys()}


def same_array(one: Any, other: Any) -> bool:
    alike = all(
        repr(getattr(one, field)) == repr(getattr(other, field))
        for field in ("shape", "dtype", "chunks", "shards", "fill_value")
    )
    names = one.metadata.dimension_names == other.metadata.dimension_names
    values, others = np.asarray(one[...]), np.asarray(other[...])
    bits = values.dtype.kind == "f"
    equal = np.array_equal(values, others, equal_nan=True) if bits else values.tolist() == others.tolist()
    return alike and names and equal and dict(one.attrs) == dict(other.attrs)


def check_same(store: Path, back: Path) -> None:
    """Everything that plain zarr sees is equal, save what proves the files themselves."""
    before, after = captures(store), captures(back)
    assert before.keys() == after.keys()
    for name, group in before.items():
        arrays = dict(group.arrays())
        assert arrays.keys() == dict(after[name].arrays()).keys()
        for key, array in arrays.items():
            assert key.startswith("manifest_") or same_array(array, after[name][key]), key
        unproven = {"digest": None, "manifest": None, "front": None}
        was, is_now = (attnlens.open(path)[name].metadata.model_copy(update=unproven) for path in (store, back))
        assert was == is_now
        others, again = ({k: v for k, v in g.attrs.items() if k != "attnlens"} for g in (group, after[name]))
        assert others == again


@given(
    none=st.sets(st.integers(0, 2), max_size=2),
    prompt=st.integers(1, 9),
    generated=st.integers(0, 5),
    lens=st.booleans(),
    attention=st.booleans(),
    seed=st.integers(0, 9),
)
@SLOW
def test_there_and_back_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    none: set[int],
    prompt: int,
    generated: int,
    lens: bool,
    attention: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("hdf5")
    store, back = folder / "run.zarr", folder / "back.zarr"
    sample = Sample(
        n_prompt=prompt, n_generated=generated, none_layers=tuple(none), lens=lens, attention=attention, seed=seed,
        feed_all=not generated,
    )  # fmt: skip
    sample.write(store)
    Sample(seed=seed + 1).write(StoreWriter.create(store, append=True))
    export_hdf5(store, folder / "run.h5")
    back.mkdir()
    assert convert(folder / "run.h5", back, Limits()) == ["0000", "0001"]
    check_same(store, back)
    assert verify(back).problems == []


def test_the_archived_store_and_a_cropped_one(tmp_path: Path) -> None:
    small = tmp_path / "small.zarr"
    crop(ARCHIVED, small, dtype="uint8")
    for number, store in enumerate((ARCHIVED, small)):
        back = tmp_path / f"{number}.zarr"
        export_hdf5(store, tmp_path / f"{number}.h5")
        import_hdf5(tmp_path / f"{number}.h5", back)
        check_same(store, back)
        assert verify(back).problems == []


def test_a_capture_that_ended_early(tmp_path: Path) -> None:
    store, sample = tmp_path / "run.zarr", Sample(n_generated=6)
    with StoreWriter.create(store).capture(sample.metadata(), capacity=20) as out:
        sample.prompt(out)
        sample.step(out, sample.n_prompt)
        out.fail("the power went")
    export_hdf5(store, tmp_path / "run.h5")
    import_hdf5(tmp_path / "run.h5", tmp_path / "back.zarr")
    check_same(store, tmp_path / "back.zarr")
    back = attnlens.open(tmp_path / "back.zarr")[0]
    assert (back.status, back.metadata.error) == ("partial", "the power went")


def test_plain_h5py_reads_numbers_texts_and_axes(tmp_path: Path) -> None:
    sample = Sample()
    sample.texts[2], sample.texts[3] = "a\0b", "🙂␀"
    sample.write(tmp_path / "run.zarr")
    export_hdf5(tmp_path / "run.zarr", tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        group = file["0000"]
        expected = sample.expected()
        for name, values in expected.items():
            found = group[name][()] if values.dtype != object else group[name].asstr()[()]
            if name == "token_text":
                values = np.array([text.replace("\0", "␀") for text in values], dtype=object)
            np.testing.assert_array_equal(found, values, err_msg=name)
        assert group.keys() - {"document", *expected} == {"document"} & set()
        weight = group["attention_weight"]
        assert [dim.label for dim in weight.dims] == ["layer", "head", "query", "key"]
        assert [np.array_equal(dim[0], group[dim.label]) for dim in weight.dims] == [True] * 4
        assert (weight.compression, weight.shuffle, weight.attrs["unit"]) == ("gzip", True, "probability")
        assert json.loads(group["document"][()])["attnlens"]["prompt"] == "Who is Bob’s sister?"
    import_hdf5(tmp_path / "run.h5", tmp_path / "back.zarr")
    assert attnlens.open(tmp_path / "back.zarr")[0].token_text == sample.texts


def test_some_captures(tmp_path: Path) -> None:
    export_hdf5(ARCHIVED, tmp_path / "one.h5", captures=["0001"])
    import_hdf5(tmp_path / "one.h5", tmp_path / "one.zarr")
    assert attnlens.open(tmp_path / "one.zarr").ids == ["0001"]
    with pytest.raises(AbsentError, match="has no capture '7'"):
        export_hdf5(ARCHIVED, tmp_path / "none.h5", captures=["7"])
    assert not (tmp_path / "none.h5").exists()


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    export_hdf5(ARCHIVED, tmp_path / "run.h5")
    before = (tmp_path / "run.h5").read_bytes()
    with pytest.raises(InputError, match="exists"):
        export_hdf5(ARCHIVED, tmp_path / "run.h5")
    with pytest.raises(InputError, match="is a folder"):
        export_hdf5(ARCHIVED, tmp_path, overwrite=True)
    assert (tmp_path / "run.h5").read_bytes() == before
    export_hdf5(ARCHIVED, tmp_path / "run.h5", captures=["0000"], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def _other(file: h5py.File) -> None:
    file.attrs["format"] = "other"


def _later(file: h5py.File) -> None:
    _change(file, lambda about: about.update(version=7))


def _no_document(file: h5py.File) -> None:
    del file["0000/document"]


def _not_json(file: h5py.File) -> None:
    del file["0000/document"]
    file["0000"].create_dataset("document", data="{", dtype=h5py.string_dtype())


def _away(file: h5py.File) -> None:
    del file["0000/token_id"]
    file["0000/token_id"] = h5py.ExternalLink("/etc/secret.h5", "/x")


def _symlink(file: h5py.File) -> None:
    file["0000/again"] = h5py.SoftLink("/0000/token_id")


def _elsewhere(file: h5py.File) -> None:
    del file["0000/token_special"]
    file["0000"].create_dataset("token_special", (9,), "u1", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def _hollow(file: h5py.File) -> None:
    file["0000"].create_dataset("more", (1 << 20, 1 << 14), "f4", chunks=(64, 64))
    file["0000/more"].attrs["zarr_chunk"] = (64, 64)


def _long(file: h5py.File) -> None:
    file["0000"].create_dataset("more", (1 << 40,), "f4", chunks=(64,))
    file["0000/more"].attrs["zarr_chunk"] = (64,)


def _short(file: h5py.File) -> None:
    values = file["0000/token_id"][:3]
    attributes = dict(file["0000/token_id"].attrs)
    del file["0000/token_id"]
    file["0000/token_id"] = values
    for name in ("zarr_chunk", "zarr_attributes"):
        file["0000/token_id"].attrs[name] = attributes[name]
    file["0000/token_id"].dims[0].label = "token"


def _no_chunk(file: h5py.File) -> None:
    del file["0000/token_id"].attrs["zarr_chunk"]


def _zero_chunk(file: h5py.File) -> None:
    file["0000/token_id"].attrs["zarr_chunk"] = (0,)


def _uneven(file: h5py.File) -> None:
    file["0000/lens_entropy"].attrs["zarr_chunk"] = (3, 7)


def _objects(file: h5py.File) -> None:
    file["0000"].create_dataset("more", data=np.zeros(2, [("a", "i4"), ("b", "f8")]))


def _climbing(file: h5py.File) -> None:
    file["0000"].create_dataset("..%2f", data=np.zeros(2))


def _stranger(file: h5py.File) -> None:
    file.create_group("0009")


def _missing(file: h5py.File) -> None:
    del file["0000/lens_token"]


def _encoded(file: h5py.File) -> None:
    file["0000/lens_entropy"].attrs["zarr_attributes"] = json.dumps({"attnlens": {"encoding": "cubes"}})


def _change(file: h5py.File, change: Callable[[dict[str, Any]], None]) -> None:
    about = json.loads(file["document"][()])
    change(about["attnlens"])
    del file["document"]
    file.create_dataset("document", data=json.dumps(about), dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_other, "not an attnlens export"),
        (_later, "format version 7"),
        (_no_document, "0000/document is missing"),
        (_not_json, "0000/document is no JSON"),
        (_away, "0000/token_id is a link, which is never followed"),
        (_symlink, "0000/again is a link"),
        (_elsewhere, "0000/token_special keeps its cells in another file"),
        (_hollow, "0000/more claims .* and does not hold them"),
        (_long, "0000/more: shape .* has an axis longer than"),
        (_short, "0000/token_id: axis token has 3"),
        (_no_chunk, "0000/token_id: zarr_chunk is None, expected sizes"),
        (_zero_chunk, "0000/token_id: zarr_chunk is .*, expected sizes"),
        (_uneven, "0000/lens_entropy: chunks of .* do not fill files"),
        (_objects, "0000/more has dtype .*, expected numbers or text"),
        (_climbing, "is no array"),
        (_stranger, "'0009' is no capture of the store"),
        (_missing, "0000/lens_token"),
        (_encoded, "0000/lens_entropy: encoding 'cubes' of float32 is unknown"),
    ],
)
def test_a_strangers_file_is_refused_in_a_line(tmp_path: Path, damage: Callable[[h5py.File], None], words: str) -> None:
    export_hdf5(ARCHIVED, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        damage(file)
    (tmp_path / "back.zarr").mkdir()
    with pytest.raises(StoreError, match=words) as refused:
        convert(tmp_path / "run.h5", tmp_path / "back.zarr", Limits())
    assert "\n" not in str(refused.value)


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    export_hdf5(ARCHIVED, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        _missing(file)
    with pytest.raises(StoreError, match="0000/lens_token"):
        import_hdf5(tmp_path / "run.h5", tmp_path / "back.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_what_is_no_hdf5_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_bytes(b"\x89HDF no")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        import_hdf5(tmp_path / "run.h5", tmp_path / "back.zarr")
    with pytest.raises(InputError, match="no such file"):
        import_hdf5(tmp_path / "none.h5", tmp_path / "back.zarr")


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    export_hdf5(ARCHIVED, tmp_path / "run.h5")
    data = (tmp_path / "run.h5").read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(4):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 1 + trial % 4):
            broken[place] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "broken.h5").write_bytes(broken)
        with contextlib.suppress(StoreError, InputError):  # a byte that nothing depends on may be flipped, too
            import_hdf5(tmp_path / "broken.h5", tmp_path / "back.zarr", overwrite=True)
            assert verify(tmp_path / "back.zarr").problems == []


def test_the_page_about_it_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (Path(__file__).parent.parent / "docs" / "hdf5.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    Sample().write(tmp_path / "run.zarr")
    export_hdf5(tmp_path / "run.zarr", tmp_path / "run.h5")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "hdf5.md", "exec"), {})
    assert capsys.readouterr().out == "synthetic (3, 2, 9) ['layer', 'head', 'query', 'key']\n"


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lens = partial(run, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert lens("export", str(ARCHIVED), "run.h5", "-q") == 0
    assert lens("import", "run.h5", "-o", "back.zarr", "-q") == 0
    check_same(ARCHIVED, tmp_path / "back.zarr")
    assert lens("export", str(ARCHIVED), "-o", "run.doc") == 1
    said = capsys.readouterr().err
    assert said == (
        "lens: the ending of run.doc says no form; say --format NAME, or name a file that ends in .html, .h5, "
        ".parquet, .npz, .safetensors, .inif.json\n"
    )
    assert lens("import", "none.h5") == 1
    assert capsys.readouterr().err == "lens: none.h5: no such file\n"
