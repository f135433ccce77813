"""Whatever one prompt of many meets is that prompt's failure; a lost store or device ends the run, and it can go on."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import attnlens
from attnlens import cli
from attnlens.capture import capture
from attnlens.capture.batch.many import ManyReport, capture_many
from attnlens.capture.failure import device_is_lost
from attnlens.capture.settings import Settings
from attnlens.schemas.errors import InputError, ModelError, StoreError
from attnlens.store.verify import verify
from batch_runs import OPTIONS, assert_same, model, run
from families import byte_tokenizer
from test_capture_feeding import long_rope

ASKED = [{"id": name, "prompt": f"the quick {name}"} for name in ("a", "b", "Z", "d")]
MARK = 3 + ord("Z")
ACCELERATOR_ERROR: Any = getattr(torch, "AcceleratorError", RuntimeError)  # which torch 2.6 lacks


def trapped(act: Callable[[], Any]) -> Any:
    """The tiny model with a hook of its owner's, which acts on texts with a Z in the prompt."""
    tiny = model()

    def hook(module: Any, arguments: tuple[Any, ...]) -> None:
        if (arguments[0] == MARK).any() and arguments[0].shape[1] > 1:
            act()

    tiny.get_input_embeddings().register_forward_pre_hook(hook)
    return tiny


def does_nothing() -> None:
    """A hook is part of what a resume compares, so the mended model has one as well."""


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def many(path: Path, tiny: Any, tokenizer: Any = None, **options: Any) -> ManyReport:
    return capture_many(tiny, tokenizer or byte_tokenizer(), ASKED, path, **{**OPTIONS, "max_new_tokens": 4, **options})


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "run.zarr"
    assert len(run(path, ASKED, max_new_tokens=4).captures) == 4
    return path


@pytest.mark.parametrize(
    "error",
    [
        IndexError("index 7 is out\nof range"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        NotImplementedError(),
        MemoryError("no room"),
        FileNotFoundError(errno.ENOENT, "No such file", "table.bin"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_in_a_models_code_is_that_prompts(error: Exception, truth: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    report = many(path, trapped(raises(error)))
    assert [one.id for one in report.failures] == ["Z"]
    assert (len(report.captures), report.left) == (3, 0)
    said = report.failures[0].message
    assert type(error).__name__ in said or "out of memory" in said
    assert "\n" not in said
    store = attnlens.open(path)
    assert [found.status for found in store] == ["complete", "complete", "failed", "complete"]
    assert said in (store["Z"].metadata.error or "")
    assert not verify(path).problems
    again = many(path, trapped(does_nothing), resume=True)
    assert (again.kept, len(again.captures)) == (["a", "b", "d"], 1)
    assert_same(path, truth)


class Tokenizer:
    """A tokenizer whose own code fails on one text."""

    def __init__(self, where: str, error: Exception) -> None:
        self._inner, self._where, self._error = byte_tokenizer(), where, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        if self._where == "encode" and "Z" in text:
            raise self._error
        return self._inner(text, **options)

    def encode(self, text: Any, **options: Any) -> Any:
        if self._where == "encode" and "Z" in text:
            raise self._error
        return self._inner.encode(text, **options)


@pytest.mark.parametrize("error", [TypeError("'NoneType' object is not iterable"), OSError(5, "Input/output error")])
def test_an_error_in_a_tokenizers_code_is_that_prompts(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    report = many(path, model(), Tokenizer("encode", error))
    assert [one.id for one in report.failures] == ["Z"]
    assert len(report.captures) == 3
    assert str(error).split("] ")[-1] in report.failures[0].message
    assert [found.status for found in attnlens.open(path)] == ["complete", "complete", "failed", "complete"]


def test_one_prompt_alone_fails_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*IndexError: index 7 is out of range") as caught:
        capture(
            trapped(raises(IndexError("index 7 is out\nof range"))),
            byte_tokenizer(),
            [1, *range(10, 20)] * 9 + [MARK],
            tmp_path / "run.zarr",
            max_new_tokens=2,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        ACCELERATOR_ERROR("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("HIP error: the operation cannot be performed in the present state"),
    ],
)
def test_a_device_that_no_longer_answers_ends_the_run(error: Exception, truth: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with pytest.raises(ModelError, match="device cpu no longer answers") as caught:
        many(path, trapped(raises(error)))
    assert "at prompt Z: 2 of 4 prompts are complete; the same with resume=True does the rest" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (path / "0003").exists()
    again = many(path, trapped(does_nothing), resume=True)
    assert (again.kept, len(again.captures), again.left) == (["a", "b"], 2, 0)
    assert_same(path, truth)


def test_memory_that_is_short_is_no_lost_device() -> None:
    cpu = torch.device("cpu")
    assert not device_is_lost(torch.OutOfMemoryError("CUDA out of memory"), cpu)
    assert not device_is_lost(RuntimeError("CUDA error: out of memory"), cpu)
    assert not device_is_lost(ValueError("the prompt says CUDA error"), cpu)


def test_a_store_that_cannot_be_written_ends_the_run(truth: Path, tmp_path: Path) -> None:
    path, away = tmp_path / "run.zarr", tmp_path / "away"
    with pytest.raises(StoreError, match="cannot write"):
        many(path, trapped(lambda: path.rename(away)))
    shutil.rmtree(path, ignore_errors=True)  # what was tried after the store was gone
    away.rename(path)
    again = many(path, trapped(does_nothing), resume=True)
    assert (again.kept, len(again.captures)) == (["a", "b"], 2)
    assert_same(path, truth)


def test_a_failure_that_cannot_be_recorded_ends_the_run(tmp_path: Path) -> None:
    """A prompt that is refused before its capture begins, in a store that is gone."""
    path = tmp_path / "run.zarr"

    class Vanishing(Tokenizer):
        def encode(self, text: Any, **options: Any) -> Any:
            if "Z" in text:
                path.rename(tmp_path / "away")
            return super().encode(text, **options)

        def __call__(self, text: Any, **options: Any) -> Any:
            if "Z" in text:
                path.rename(tmp_path / "away")
            return super().__call__(text, **options)

    tokenizer = Vanishing("encode", TypeError("no text"))
    with pytest.raises(StoreError, match="cannot write"):
        capture_many(model(), tokenizer, ASKED[:3], path, **{**OPTIONS, "max_new_tokens": 4})


def test_ctrl_c_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(attnlens.schemas.errors.Interrupted, match="interrupted at prompt Z: 2 of 4"):
        many(tmp_path / "run.zarr", trapped(raises(KeyboardInterrupt())))


def test_a_failure_names_options_on_the_command_line_and_parameters_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "model", tmp_path / "prompts.jsonl"
    long_rope().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    file.write_text('{"id": "short", "prompt": "ab", "max_new_tokens": 2}\n{"id": "long", "prompt": "abcdefg"}\n')
    arguments = ["-m", folder, "--prompts", file, "--raw", "-n", "20", "--attention", "qk", "-q", "--device", "cpu"]
    said = {}
    capsys.readouterr()  # what writing the model says
    for name, more in (("text", ()), ("json", ("--json",))):
        wanted = map(str, ["lens", "capture", *arguments, "-o", tmp_path / f"{name}.zarr", *more])
        monkeypatch.setattr(sys, "argv", list(wanted))
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 1
        said[name] = capsys.readouterr()
        assert said[name].err.count("\n") == 1
        assert said[name].err.endswith("use --attention dense, or fewer --max-new-tokens\n")
    (failure,) = json.loads(said["json"].out)["failures"]
    assert failure["id"] == "long"
    assert failure["message"].endswith("use --attention dense, or fewer --max-new-tokens")
    asked: list[Any] = [{"id": "short", "prompt": "ab", "max_new_tokens": 2}, {"id": "long", "prompt": "abcdefg"}]
    options: dict[str, Any] = {"raw": True, "max_new_tokens": 20, "settings": Settings(attention="qk")}
    report = capture_many(long_rope(), byte_tokenizer(), asked, tmp_path / "python.zarr", **options)
    assert report.failures[0].message.endswith("use attention='dense', or fewer max_new_tokens")
    assert "--" not in str(report.failures[0])


def test_a_store_that_is_there_is_spoken_of_as_it_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    for refused in (
        lambda: capture(model(), byte_tokenizer(), [5, 6], path),
        lambda: many(path, model()),
        lambda: many(path, model(), overwrite=True, append=True),
    ):
        with pytest.raises(InputError) as caught:
            refused()
        assert "-o" not in str(caught.value).split()
        assert "--" not in str(caught.value)
        assert "--overwrite" in caught.value.on_command_line()
