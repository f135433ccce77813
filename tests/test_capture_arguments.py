"""What Python hands over: ids as lists, arrays and tensors, numbers of numpy; anything else is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attnlens
from attnlens.capture import capture
from attnlens.capture.batch.many import capture_many
from attnlens.capture.settings import Settings
from attnlens.schemas.errors import InputError
from tiny import TEMPLATE, byte_level_tokenizer, llama

IDS = [1, 40, 41, 42]
QUICK: dict[str, Any] = {"max_new_tokens": 2, "temperature": 0}


def test_ids_may_be_arrays_and_tensors(tmp_path: Path) -> None:
    prompts: list[Any] = [IDS, tuple(IDS), np.array(IDS), torch.tensor(IDS), [np.int64(token) for token in IDS]]
    report = capture_many(
        llama(), byte_level_tokenizer(), prompts, tmp_path / "many.zarr", settings=Settings(lens=False), **QUICK
    )
    assert not report.failures
    for number, prompt in enumerate(prompts):
        path = tmp_path / f"{number}.zarr"
        rest: Any = np.array([50, 51])
        capture(llama(), byte_level_tokenizer(), prompt, path, token_ids=rest, lens=False)
        assert attnlens.open(path)[0].token_id[:].tolist() == [*IDS, 50, 51]
    found = [one.token_id[:].tolist() for one in attnlens.open(tmp_path / "many.zarr")]
    assert [text[:4] for text in found] == [IDS] * 5
    assert len({tuple(text) for text in found}) == 1


def test_numbers_of_numpy_are_recorded_as_numbers(tmp_path: Path) -> None:
    fields = {"top_k": np.int64(3), "repetition_penalty": np.float32(1.5), "suppress_tokens": torch.tensor([3, 4])}
    options: dict[str, Any] = {"seed": np.int64(4), "max_new_tokens": np.int32(2), "temperature": np.float32(0.5)}
    capture(llama(), byte_level_tokenizer(), IDS, tmp_path / "a.zarr", generation=fields, lens=False, **options)
    about = attnlens.open(tmp_path / "a.zarr")[0].metadata.sampling
    assert about.overrides == {"top_k": 3, "repetition_penalty": 1.5, "suppress_tokens": [3, 4]}
    assert (about.seed, about.max_new_tokens, about.temperature) == (4, 2, 0.5)


class Processor:
    """As a model with an image tower has it: what is given first is an image."""

    image_processor = None
    tokenizer = byte_level_tokenizer()

    def __call__(self, images: Any) -> None:
        raise AssertionError("called with a text")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": b"Who?"}, "the prompt is of class bytes"),
        ({"prompt": None}, "the prompt is of class NoneType"),
        ({"prompt": [True, False]}, "a token id at index 0, found True"),
        ({"prompt": [1, 2.5]}, "a token id at index 1, found 2.5"),
        ({"prompt": [-1, 3]}, "a token id at index 0, found -1"),
        ({"prompt": torch.tensor([IDS])}, "the prompt is empty or mixed"),
        ({"prompt": IDS, "system": "Be brief."}, "a system text needs the chat template"),
        ({"token_ids": [5, 1.5]}, "a token id at index 1, found 1.5"),
        ({"token_ids": b"ab"}, "expected a list of ids, found bytes"),
        ({"completion": IDS}, "the completion is of class list, expected a text; give ids as token_ids"),
        ({"generation": ["top_k=3"]}, "of class list, expected a mapping"),
        ({"generation": {"top_k": {3}}}, "top_k is {3}, expected a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"top_p": None}, "top_p is None, expected a number"),
        ({"seed": True}, "seed is True, expected a whole number"),
        ({"tokenizer": None}, "the tokenizer is of class NoneType"),
        ({"tokenizer": Processor()}, "of class Processor, expected a tokenizer of transformers; give its `tokenizer`"),
    ],
)
def test_what_is_none_of_these_is_refused_and_nothing_is_written(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    asked = {"tokenizer": byte_level_tokenizer(TEMPLATE), "prompt": "Who?", **options}
    with pytest.raises(InputError) as refusal:
        capture(llama(), asked.pop("tokenizer"), asked.pop("prompt"), tmp_path / "a.zarr", **asked)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_bytes_are_no_ids_among_many_prompts_either(tmp_path: Path) -> None:
    prompts: list[Any] = [b"Who?", "Who?", {"prompt": "a", "completion": "\n"}, {"prompt": "a", "completion": ""}]
    options: dict[str, Any] = {"settings": Settings(lens=False), **QUICK}
    report = capture_many(llama(), byte_level_tokenizer(), prompts, tmp_path / "a.zarr", **options)
    assert [one.where for one in report.failures] == ["prompt 0", "prompt 3"]
    assert "expected a text, messages, token ids" in report.failures[0].message
    assert attnlens.open(tmp_path / "a.zarr")[2].metadata.completion == "\n"
