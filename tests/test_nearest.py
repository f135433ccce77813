"""A name that is not there is answered with the one that was probably meant."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import attnlens
from attnlens import cli
from attnlens.capture import capture_many
from attnlens.capture.models import load
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.schemas.errors import AbsentError, AttnlensError, InputError, ModelError, StoreError
from attnlens.schemas.nearest import did_you_mean
from families import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("near") / "india.zarr"
    prompts = [{"id": name, "prompt": f"Say {name}", "max_new_tokens": 0} for name in ("French", "German", "Dutch")]
    capture_many(tiny_model("llama"), byte_tokenizer(), prompts, path, raw=True)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "india.zarr"))


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("Frence", ["French", "German"], "; did you mean French?"),
        ("FRENCH", ["French"], "; did you mean French?"),
        ("0002", ["0000", "0001"], "; did you mean 0001 or 0000?"),
        ("Swahili", ["French", "German"], ""),
        ("x", [], ""),
    ],
)
def test_names_that_are_near(name: str, known: list[str], answer: str) -> None:
    assert did_you_mean(name, known) == answer


def test_a_capture(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AbsentError) as caught:
        attnlens.open(store)["Frence"]
    assert str(caught.value).endswith(
        "has no capture 'Frence'; it has 0000, 0001, 0002, of the prompts French, German, Dutch; did you mean French?"
    )
    monkeypatch.setattr(sys, "argv", ["lens", "info", str(store), "--capture", "Germany"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    shown = capsys.readouterr().err
    assert shown.endswith("did you mean German?\n")
    assert shown.count("\n") == 1


def test_an_array_and_a_lens(store: Path) -> None:
    capture = attnlens.open(store)["Dutch"]
    with pytest.raises(AttnlensError, match="did you mean lens_entropy"):
        capture["lens_entropie"]
    with pytest.raises(AbsentError, match=r"has no lens 'Logit': it has logit; did you mean logit\?"):
        capture.reading_name("lens_token", "Logit")


@pytest.mark.parametrize("wrong", ["ind.zar", "indai.zarr", "india", "india.zarr.zip", "India.zarr"])
def test_a_store(store: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError) as caught:
        attnlens.open(store.with_name(wrong))
    assert str(caught.value) == f"{store.with_name(wrong)}: no such store; did you mean {store}?"
    monkeypatch.chdir(store.parent)
    with pytest.raises(StoreError) as caught:
        attnlens.open(wrong)
    assert str(caught.value) == f"{wrong}: no such store; did you mean india.zarr?"


def test_a_store_in_no_folder(store: Path) -> None:
    with pytest.raises(StoreError, match=r"no such store; there is no folder .*nowhere$"):
        attnlens.open(store.parent / "nowhere" / "india.zarr")


def test_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"no such model: .*did you mean smollm2-135m\?$"):
        load("smollm2-135", device="cpu")
    (tmp_path / "my-llama").mkdir()
    (tmp_path / "my-llama" / "config.json").write_text("{}")
    (tmp_path / "my-llama.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=rf"did you mean {tmp_path}/my-llama\b"):
        load(f"{tmp_path}/my-lama", device="cpu")
    with pytest.raises(ModelError, match=rf"no such file: .*did you mean {tmp_path}/my-llama.gguf\?$"):
        load(f"{tmp_path}/my-lama.gguf", device="cpu")


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"scale": "drop-sinks"}, "drop-sink"),
        ({"heads": "medain"}, "median"),
        ({"text": "probabilty"}, "probability"),
        ({"format": "pngg"}, "png"),
    ],
)
def test_a_choice(options: dict[str, str], meant: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"did you mean {meant}\b"):
        render(store, tmp_path / "pictures", options=RenderOptions(capture="French", **options))  # type: ignore[arg-type]
