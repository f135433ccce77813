"""A sentencepiece model that lies alone: the file of older checkpoints, without tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnlens.capture.models.failure import one_line
from attnlens.capture.models.meta_tokenizer import sentencepiece_tokenizer
from attnlens.schemas.errors import ModelError


def read_sentencepiece(path: Path) -> Any:
    """The tokenizer of a sentencepiece model: as Llama 2's if it is built so, else sentencepiece itself.

    Raises:
        ModelError: no sentencepiece model.
    """
    try:
        return sentencepiece_tokenizer(path)
    except ModelError as error:
        if "neither a tiktoken" in str(error):
            raise
    from sentencepiece import SentencePieceProcessor
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    pieces = SentencePieceProcessor(model_file=str(path))
    ids = {"unk": pieces.unk_id(), "bos": pieces.bos_id(), "eos": pieces.eos_id(), "pad": pieces.pad_id()}
    names = {f"{role}_token": pieces.id_to_piece(number) for role, number in ids.items() if number >= 0}
    try:
        return SentencePieceBackend(vocab_file=str(path), legacy=True, clean_up_tokenization_spaces=False, **names)
    except Exception as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
