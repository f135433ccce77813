"""A tokenizer for any small model."""

from __future__ import annotations

from typing import Any

import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import bytes_to_unicode


def byte_tokenizer() -> Any:
    """One token a byte, and three special ones: any text fits the vocabulary of the tiny models."""
    alphabet = bytes_to_unicode()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {alphabet[byte]: 3 + byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
