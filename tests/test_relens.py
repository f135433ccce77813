"""`lens relens`: what it adds is what a capture would have read, and a store is as it was where it fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM, AutoTokenizer

import attnlens
from attnlens.capture import capture, reread
from attnlens.capture import relens as module
from attnlens.capture.relens import RelensOptions, relens
from attnlens.progress import Silent
from attnlens.schemas.arrays import READINGS, TRACKED_READINGS, reading
from attnlens.schemas.errors import AbsentError, AttnlensError, InputError, ModelError, StoreError
from attnlens.store import exchange
from attnlens.store.root import write_root
from attnlens.store.tools import extend
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.pack import pack
from attnlens.store.verify import verify
from families import byte_tokenizer, tiny_model
from test_capture_evidence import write_tuned
from test_store_rows import arrays_with_digests
from tiny import write_hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another of the same shape, a tuned lens, and a store with residuals and the logit lens."""
    path = tmp_path_factory.mktemp("relens")
    write_hf(path / "model")
    write_hf(path / "other", seed=3)
    write_tuned(path / "lens", 3, 32)
    write_tuned(path / "lens2", 3, 32)
    write_store(path / "run.zarr", path)
    return path


def write_store(store: Path, folder: Path, **options: Any) -> None:
    dtype = options.pop("dtype", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for text in ("Who is Bob's sister?", "2 + 2"):
        capture(
            model, tokenizer, text, store, append=True, max_new_tokens=9, temperature=0,
            **{"track": [5], "residuals": True, **options},
        )  # fmt: skip


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "run.zarr", tmp_path / "run.zarr"))


def bytes_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def options(store: Path, folder: Path, *lenses: str, **more: Any) -> RelensOptions:
    return RelensOptions(
        store=store, model=str(folder / "model"), lenses=lenses or (f"tuned:{folder / 'lens'}",), **more
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_added_is_what_a_capture_reads(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    store = tmp_path / "run.zarr"
    write_store(store, folder, dtype=dtype)
    write_store(tmp_path / "both.zarr", folder, dtype=dtype, lenses=["logit", f"tuned:{folder / 'lens'}"])
    before = bytes_of(store)
    report = relens(options(store, folder), Silent())
    assert report.added == {"0000": ["tuned"], "0001": ["tuned"]}
    for name in ("0000", "0001"):
        found: Any = zarr.open_group(store, mode="r")[name]
        expected: Any = zarr.open_group(tmp_path / "both.zarr", mode="r")[name]
        assert sorted(found) == sorted(expected)
        for array in (*READINGS, *TRACKED_READINGS):
            one, other = found[reading(array, "tuned")][:], expected[reading(array, "tuned")][:]
            if one.dtype.kind == "f":
                np.testing.assert_allclose(one, other, atol=1e-5 if dtype == torch.float32 else 3e-3)
            else:
                assert (one == other).mean() > (0.999 if dtype == torch.float32 else 0.9)
        ids = found["vocabulary_id"][:].tolist()
        assert set(np.unique(found["lens_token_tuned"][:])) - {-1} <= set(ids)
        assert len(ids) == len(set(ids)) == len(found["vocabulary_text"][:])
    assert verify(store).problems == []
    after = bytes_of(store)
    changed = {name for name in before if after[name] != before[name]}
    assert all("/vocabulary_" in name or "/manifest_" in name or name.count("/") < 2 for name in changed), changed
    assert attnlens.open(store)[0].lens_names == ["logit", "tuned"]


def test_large_arrays_keep_the_digests_of_their_chunks_and_new_ones_get_theirs(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    capture(model, tokenizer, "Who is Bob's sister? " * 40, store, raw=True, max_new_tokens=2, residuals=True, top_k=60)
    before = arrays_with_digests(store)
    table: Any = zarr.open_array(store / "0000/chunk_sha256", mode="r")
    old = {name: table[about["first"] :][: before[name]] for name, about in table.attrs["attnlens"]["arrays"].items()}
    relens(options(store, folder), Silent())
    after = arrays_with_digests(store)
    assert before.items() <= after.items()
    assert {"attention_weight", "residual", "lens_probability"} <= before.keys()
    assert after["lens_probability_tuned"] == before["lens_probability"]
    table = zarr.open_array(store / "0000/chunk_sha256", mode="r")
    for name, digests in old.items():
        first = table.attrs["attnlens"]["arrays"][name]["first"]
        np.testing.assert_array_equal(table[first : first + len(digests)], digests)
    assert verify(store).problems == []


def test_a_chunk_that_was_damaged_before_is_not_vouched_for(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    capture(model, tokenizer, "Who is Bob's sister? " * 40, store, raw=True, max_new_tokens=2, residuals=True)
    file = max((store / "0000/attention_weight/c").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    relens(options(store, folder), Silent())
    with pytest.raises(StoreError, match="attention_weight"):
        attnlens.open(store)[0].attention.rows(slice(0, 300))


def test_a_store_without_a_lens_gets_its_first(folder: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "run.zarr", folder, lens=False, track=[])
    write_store(tmp_path / "expected.zarr", folder, track=[])
    relens(options(tmp_path / "run.zarr", folder, "logit"), Silent())
    found, expected = attnlens.open(tmp_path / "run.zarr")[0], attnlens.open(tmp_path / "expected.zarr")[0]
    assert found.names == expected.names
    np.testing.assert_array_equal(found["lens_token"][:], expected["lens_token"][:])
    np.testing.assert_allclose(found["lens_probability"][:], expected["lens_probability"][:], atol=1e-5)
    assert found.vocabulary == expected.vocabulary
    assert found.metadata.lens == expected.metadata.lens
    assert found.metadata.lens_absent is None
    assert verify(tmp_path / "run.zarr").problems == []


def test_several_lenses_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    store = copied(folder, tmp_path)
    relens(options(store, folder), Silent())
    relens(options(store, folder, f"tuned:{folder / 'lens2'}", capture="0001"), Silent())
    assert [found.lens_names for found in attnlens.open(store)] == [["logit", "tuned"], ["logit", "tuned", "tuned2"]]
    assert verify(store).problems == []


def test_captures_that_have_a_lens_are_left_alone(folder: Path, tmp_path: Path) -> None:
    store, lens = copied(folder, tmp_path), f"tuned:{folder / 'lens'}"
    relens(options(store, folder, capture="0001"), Silent())
    before = bytes_of(store / "0001")
    report = relens(options(store, folder, lens, "logit", f"tuned:{folder / 'lens2'}", capture="0000"), Silent())
    assert report.added == {"0000": ["tuned", "tuned2"]}
    assert relens(options(store, folder, f"tuned:{folder / 'lens2'}"), Silent()).added == {"0001": ["tuned2"]}
    hashes = [[one.hash for one in found.metadata.lenses] for found in attnlens.open(store)]
    assert hashes[0] == hashes[1]
    assert {name for name, data in before.items() if bytes_of(store / "0001").get(name) != data} <= {
        "zarr.json",
        *(f"{name}/{file}" for name in ("vocabulary_id", "vocabulary_text", "manifest_file", "manifest_sha256")
          for file in ("zarr.json", "c/0", "front.bin")),
    }  # fmt: skip
    for wanted in (lens, f"tuned:{folder / 'lens2'}"):
        with pytest.raises(InputError, match="it is there already"):
            relens(options(store, folder, wanted), Silent())


def independent(folder: Path, group: Any) -> np.ndarray[Any, Any]:
    """Probabilities (depth, token, vocabulary) that the tuned lens gives, from residuals as plain zarr reads them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    state = torch.load(folder / "lens" / "params.pt")
    stream = torch.from_numpy(group["residual"][:])
    n_layer = len(stream) - 1
    with torch.no_grad():
        for depth in range(n_layer):
            stream[depth] += stream[depth] @ state[f"{depth}.weight"].T + state[f"{depth}.bias"]
        return torch.softmax(model.lm_head(model.model.norm(stream)).double(), -1).numpy()


def check_readings(folder: Path, store: Path, read: Any) -> None:
    """The tokens `read` (token, by number) hold what an independent computation gives, all others fill values."""
    group: Any = zarr.open_group(store, mode="r")["0000"]
    expected, tokens = independent(folder, group)[:, read], group["lens_token_tuned"][:]
    probability, entropy = group["lens_probability_tuned"][:], group["lens_entropy_tuned"][:]
    there = ~np.isnan(expected[..., 0])
    assert there.any()
    best = np.sort(expected, -1)[..., ::-1][..., : probability.shape[-1]]
    np.testing.assert_allclose(probability[:, read][there], best[there], atol=1e-6)
    found = np.take_along_axis(expected, tokens[:, read].clip(0), -1)
    np.testing.assert_allclose(found[there], best[there], atol=1e-6)
    nats = -(expected * np.log(expected)).sum(-1)
    np.testing.assert_allclose(entropy[:, read][there], nats[there], atol=1e-4)
    for values in (tokens, probability, entropy, *(group[f"next_{name}_tuned"][:] for name in ("rank", "probability"))):
        absent = values == -1 if values.dtype.kind == "i" else np.isnan(values)
        assert absent[:, ~read].all()
        assert absent[:, read][~there].all()


@pytest.mark.parametrize(("which", "before"), [("generated", 1), ("last:4", 4)])
def test_a_further_lens_reads_the_tokens_that_the_first_one_read(
    which: str, before: int, folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "run.zarr"
    write_store(store, folder, lens_tokens=which)
    relens(options(store, folder), Silent())
    assert verify(store).problems == []
    found = attnlens.open(store)[0]
    number = np.arange(found.n_token)
    check_readings(folder, store, (number >= found.n_prompt - before) & (number < found.n_fed))
    assert (found["lens_token"][:] == -1).tolist() == (found["lens_token_tuned"][:] == -1).tolist()
    with pytest.raises(AbsentError, match="--lens-tokens"):
        found["lens_token_tuned"][:, 0]


@pytest.mark.parametrize("arrays", [(), ("-attention_weight", "-next_rank")])
def test_a_cropped_capture_gets_readings_of_what_was_kept(
    arrays: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    kept = Keep(tokens="3:6,28:32", layers="1:3", arrays=arrays)
    store = crop(folder / "run.zarr", tmp_path / "some.zarr", keep=kept).path
    before = set(attnlens.open(store)[0].names)
    relens(options(store, folder), Silent())
    assert verify(store).problems == []
    number = np.arange(attnlens.open(store)[0].n_token)
    check_readings(folder, store, np.isin(number, [3, 4, 5, 28, 29, 30, 31]))
    group: Any = zarr.open_group(store, mode="r")["0000"]
    assert set(group) - before == {reading(name, "tuned") for name in (*READINGS, *TRACKED_READINGS)}
    assert (group["next_rank_tuned"][:, [5, 31]] == -1).all()  # what came next was cropped away
    assert (group["next_rank_tuned"][1:, [3, 4, 28, 29, 30]] >= 0).all()


def test_a_redacted_capture_is_refused(folder: Path, tmp_path: Path) -> None:
    store = crop(folder / "run.zarr", tmp_path / "some.zarr", redact=["Bob"]).path
    with pytest.raises(InputError, match="was redacted"):
        relens(options(store, folder), Silent())


@pytest.mark.parametrize("fault", ["compare", "fill", "move", "steps", "steps2", "capture", "store", "interrupt"])
def test_a_failure_leaves_the_store_as_it_was(
    fault: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copied(folder, tmp_path)
    before = bytes_of(store)

    def full(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt if fault == "interrupt" else OSError(28, "No space left on device")

    match fault:
        case "compare":
            monkeypatch.setattr(module, "residuals", full)
        case "fill":
            monkeypatch.setattr(reread, "residuals", full_at(3, reread.residuals, full))
        case "move":
            monkeypatch.setattr(exchange, "_exchange", full)
        case "steps" | "steps2":
            monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
            monkeypatch.setattr(Path, "rename", full_at(1 if fault == "steps" else 2, Path.rename, full))
        case "capture" | "interrupt":
            monkeypatch.setattr(extend, "write_document", full)
        case "store":
            monkeypatch.setattr(extend, "write_root", full_at(2, write_root, full))
    error = KeyboardInterrupt if fault == "interrupt" else OSError if fault == "compare" else StoreError
    with pytest.raises(error):
        relens(options(store, folder, capture="0000"), Silent())
    assert bytes_of(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.zarr"]


def full_at(number: int, real: Any, full: Any) -> Any:
    """`real`, but one of its calls fails."""
    calls: list[int] = []

    def call(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return (full if len(calls) == number else real)(*args, **options)

    return call


def test_what_cannot_be_added_is_refused(folder: Path, tmp_path: Path) -> None:
    store = copied(folder, tmp_path)
    before = bytes_of(store)

    def refused(error: type[AttnlensError], match: str, wanted: RelensOptions) -> None:
        with pytest.raises(error, match=match):
            relens(wanted, Silent())

    refused(InputError, "--lens logit: it is there already", options(store, folder, "logit"))
    refused(InputError, "'mine' is not known: expected logit, or tuned:FOLDER", options(store, folder, "mine"))
    refused(InputError, "there is no such folder", options(store, folder, "tuned:nowhere"))
    refused(AbsentError, "no capture '0009'", options(store, folder, capture="0009"))
    wrong = RelensOptions(store=store, model=str(folder / "other"), lenses=(f"tuned:{folder / 'lens'}",))
    refused(ModelError, "not the model that was captured", wrong)
    assert bytes_of(store) == before
    packed = pack(store, tmp_path / "run.zarr.zip").path
    refused(InputError, "is no folder", options(packed, folder))
    write_store(tmp_path / "bare.zarr", folder, residuals=False)
    refused(InputError, "0000 has no residuals", options(tmp_path / "bare.zarr", folder))


def test_a_lens_that_overflows_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2").half()
    with torch.no_grad():
        model.transformer.wte.weight[200] = 6e4  # tied: the token's own logit
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    store, text = tmp_path / "run.zarr", [*range(10, 30), 200, *range(10, 30)]
    capture(model, byte_tokenizer(), text[:5], store, token_ids=text[5:], lens=False, residuals=True)
    before = bytes_of(store)
    with pytest.raises(
        ModelError, match="at token 20 the logits of the lens at depth 0 are not finite in float16; try"
    ):
        relens(options(store, tmp_path, "logit"), Silent())
    assert bytes_of(store) == before
