"""No trace of a redacted span, looked for in every decompressed byte by plain zarr and zlib-free eyes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import attnlens
from attnlens.render.pictures import render
from attnlens.schemas.arrays import ARRAYS
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.schemas.sensitivity import SENSITIVITY
from attnlens.store.tools.crop import crop
from attnlens.store.tools.redact import FREE
from attnlens.store.verify import verify
from attnlens.store.writer import StoreWriter
from store_sample import Sample

WORDS = ["<s>", "Who", " is", " Zan", "zibar", "'s", " sister", "?", " Alice", " zanzibar", "ZANZIBAR", "Zan", " the",
         "ibar", " of", " sea"]  # fmt: skip
SECRET = "Zanzibar"
TIMELINE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 12, 14, 15]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A capture whose lens says the secret in many ways, and whose metadata quote it."""
    sample = Sample(n_prompt=8, n_generated=7, n_layer=4, vocabulary_size=len(WORDS))
    sample.ids = np.array(TIMELINE, np.int32)
    sample.texts = [WORDS[number] for number in TIMELINE]
    sample.raw = [text.encode() for text in sample.texts]
    _say_next(sample)
    about = sample.metadata(
        prompt="<s>Who is Zanzibar's sister?",
        messages=[{"role": "user", "content": "Who is ZANZIBAR's sister?", "zanzibar": ["Zanzibar"]}],
        self_checks=[{"name": "a", "passed": True, "detail": "saw Zanzibar"}],
        tools=[{"name": "map", "description": "of zanzibar", "enum": ["ZANZIBAR"]}],
        label="Zanzibar" * 25,
        notes=["the prompt ends within Zanzibar"],
    )
    path = tmp_path / "run.zarr"
    writer = StoreWriter.create(path)
    with writer.capture(about, capacity=20) as out:
        sample.hand_over_tokens(out, 0, 15)
        out.vocabulary(list(range(len(WORDS))), WORDS)
        for layer in range(4):
            sample.hand_over_attention(out, layer, 0, 14)
        sample.hand_over_lens(out, 0, 14)
        out.rows(14)
        out.finish({"completion": " Alice is Zanzibar the of sea"})
    return path


def _say_next(sample: Sample) -> None:
    """Make what the lens says of the next token agree with the timeline."""
    arrays = sample.lens_arrays
    same = arrays["lens_token"] == np.append(sample.ids[1:], -1)[None, :, None]
    arrays["next_rank"] = np.where(same.any(-1), same.argmax(-1), 3).astype(np.int32)
    listed = np.where(same, arrays["lens_probability"], 0).sum(-1)
    arrays["next_probability"] = np.where(same.any(-1), listed, 0.001).astype(np.float32)
    sample.model_probability = arrays["next_probability"][-1].copy()


def every_byte(path: Path) -> str:
    """All that can be read: JSON as it is and unescaped, every array's cells decoded, and what they spell together."""
    parts: list[str] = []
    for file in path.rglob("zarr.json"):
        parts += [file.read_text(), json.dumps(json.loads(file.read_text()), ensure_ascii=False)]
    group: Any = zarr.open_group(path, mode="r")["0000"]
    for _, array in group.arrays():
        values = array[...]
        if values.dtype.kind in "OT":
            parts += ["\n".join(map(str, values.tolist())), "".join(map(str, values.tolist()))]
        else:
            parts.append(values.tobytes().decode("latin-1"))
    return "\n".join(parts)


def test_the_search_finds_the_secret_before(store: Path) -> None:
    text = every_byte(store).casefold()
    assert text.count(SECRET.casefold()) > 8


@pytest.mark.parametrize("span", ["Zanzibar", "text:zanzibar", "3:5"])
def test_no_byte_of_the_result_tells(store: Path, tmp_path: Path, span: str) -> None:
    path = crop(store, tmp_path / "out.zarr", redact=[span]).path
    assert verify(path).problems == []
    found = every_byte(path).casefold()
    assert SECRET.casefold() not in found
    for piece in ("zan", "ibar", "zibar"):
        assert piece not in found, piece
    capture = attnlens.open(path)[0]
    assert capture.token_id.tolist() == [-1 if t in (3, 4, 10, 11) else TIMELINE[t] for t in range(15)]
    assert capture.metadata.prompt == "<s>Who is [redacted]'s sister?"
    assert capture.metadata.crop is not None
    assert capture.metadata.crop.redacted == [[3, 5], [10, 12]]
    assert capture.metadata.crop.origin is None
    assert render(path, tmp_path / "pictures").count > 0
    gone = {3, 4, 9, 10, 11, 13}
    assert not gone & set(np.unique(capture["lens_token"][...]).tolist())


def test_what_is_about_the_span_is_gone_and_the_rest_is_as_it_was(store: Path, tmp_path: Path) -> None:
    path = crop(store, tmp_path / "out.zarr", redact=["3:5"]).path
    before: Any = zarr.open_group(store, mode="r")["0000"]
    after: Any = zarr.open_group(path, mode="r")["0000"]
    span, around = [3, 4, 10, 11], [2, 3, 4, 9, 10, 11]
    for name in ("next_rank", "next_probability", "model_probability"):
        old, new = before[name][...], after[name][...]
        assert (np.isnan(new[..., around]) if new.dtype.kind == "f" else new[..., around] == -1).all()
        rest = [t for t in range(15) if t not in around]
        np.testing.assert_array_equal(new[..., rest], old[..., rest])
    for name in ("lens_token", "lens_probability", "lens_entropy"):
        new = after[name][...]
        assert (np.isnan(new[:, span]) if new.dtype.kind == "f" else new[:, span] == -1).all()
    old, new = before["lens_token"][...], after["lens_token"][...]
    probability = after["lens_probability"][...]
    np.testing.assert_array_equal(np.isnan(probability[:, :14]), new[:, :14] == -1)
    kept = new != -1
    np.testing.assert_array_equal(new[kept], old[kept])
    np.testing.assert_array_equal(after["attention_weight"][...], before["attention_weight"][...])


def test_a_text_that_is_not_there_and_a_range_outside(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="selects no token: there are 15 tokens"):
        crop(store, tmp_path / "a.zarr", redact=["15:17"])
    with pytest.raises(InputError, match="does not occur"):
        crop(store, tmp_path / "a.zarr", redact=["Madagascar"])


def test_every_array_of_the_table_is_classified() -> None:
    assert set(SENSITIVITY) == {spec.name for spec in ARRAYS}
    for spec in ARRAYS:
        tells = SENSITIVITY[spec.name]
        if spec.unit in ("text", "byte") or (spec.unit == "vocabulary id" and spec.axes == ("token",)):
            assert tells.tells in ("itself", "vocabulary", "tracked"), spec.name
        if "rank" in spec.axes:
            assert tells.tells == "reading"
            assert tells.ids is not None
        if "feature" in spec.axes or "head_feature" in spec.axes:
            assert tells.tells in ("stream", "projection")


def test_what_happens_to_every_field_of_the_metadata_was_decided() -> None:
    numbers = {"status", "committed", "n_prompt", "n_token", "n_fed", "continued", "seam", "lens_first", "created",
               "timings", "versions", "device", "manifest", "front", "digest"}  # fmt: skip
    program = {"id", "attention", "attention_absent", "attention_dtype", "attention_choice", "lens", "lens_absent",
               "lenses", "evidence", "absent", "residual"}  # fmt: skip
    changed_elsewhere = {"crop", "tracked"}
    of_the_model = {"model"}
    assert {*FREE, *numbers, *program, *changed_elsewhere, *of_the_model} == set(CaptureMetadata.model_fields)


def test_a_label_stays_but_for_the_text(store: Path, tmp_path: Path) -> None:
    crop(store, tmp_path / "out.zarr", redact=[SECRET])
    about = attnlens.open(tmp_path / "out.zarr")[0].metadata
    assert about.label == ("[redacted]" * 25)[:200]
    assert about.notes == ["the prompt ends within [redacted]"]
    assert about.tools == [{"name": "map", "description": "of [redacted]", "enum": ["[redacted]"]}]


def test_streams_and_low_projections_go(tmp_path: Path) -> None:
    from attnlens.store.tools.redact import redaction
    from render_store import make

    norms = np.ones((4, 4, 11), np.float32)
    make(tmp_path / "run.zarr", n_layer=4, value_norm=norms)
    change = redaction(attnlens.open(tmp_path / "run.zarr")[0], ["3"])
    assert change is not None
    path = crop(tmp_path / "run.zarr", tmp_path / "out.zarr", redact=["3"]).path
    values: Any = zarr.open_array(path / "0000/value_norm", mode="r")[...]
    assert np.isnan(values[:2, :, 3]).all()
    assert not np.isnan(values[2:]).any()
    assert not np.isnan(values[:, :, 4]).any()


def test_no_path_or_host_name_is_in_a_store(tmp_path: Path) -> None:
    import getpass
    import socket

    pytest.importorskip("transformers", reason="capturing is the extra `capture`")
    from attnlens.capture.run import CaptureOptions, run
    from attnlens.progress import Silent
    from families import byte_tokenizer, tiny_model

    model = tmp_path / "very-private-folder" / "my-model"
    tiny_model("llama").save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    path = model.parent / "run.zarr"
    run(CaptureOptions(model=str(model), prompt="Hi", raw=True, output=path, max_new_tokens=3, device="cpu"), Silent())
    assert attnlens.open(path)[0].metadata.model.id == "my-model"
    text = every_byte(path)
    for trace in (
        "very-private-folder",
        str(tmp_path),
        socket.gethostname(),
        str(Path.home()) + "/",
        getpass.getuser() + "@",
    ):
        assert trace not in text, trace


def test_damaged_ids_are_named_and_nothing_is_written(store: Path, tmp_path: Path) -> None:
    """Found by the fuzzer: the ids that say which readings spell the span were read past the check for damage."""
    for file in filter(Path.is_file, (store / "0000" / "lens_token" / "c").rglob("*")):
        file.write_bytes(b"\xff" * 12 + file.read_bytes()[12:])
    with pytest.raises(StoreError, match="lens_token"):
        crop(store, tmp_path / "c.zarr", redact=["2:4"])
    assert not (tmp_path / "c.zarr").exists()
