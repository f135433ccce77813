"""Writes the archived store of the current format version; each release adds one, and the reader must open them all.

python tests/stores/write.py tests/stores/format-1.zarr
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attnlens.capture import capture
from families import byte_tokenizer, tiny_model


def main() -> None:
    """Two small captures: one generated, one of given text, by a model with sliding windows and attention sinks."""
    path = sys.argv[1]
    model = tiny_model("gpt_oss")
    capture(
        model, byte_tokenizer(), "Hi, Bob €", path, raw=True, max_new_tokens=6, temperature=0, model_id="tiny-gpt-oss"
    )
    capture(
        tiny_model("llama"),
        byte_tokenizer(),
        "Who",
        path,
        raw=True,
        completion=" is he?",
        append=True,
        model_id="tiny-llama",
    )


if __name__ == "__main__":
    main()
