"""Tokenizers that are nothing but a *.model file, which transformers converts.

Where it cannot, it says what it tried last, tiktoken, and hides why it could not read a sentencepiece model. Where it
can, some versions make a tokenizer of it that forgets the first space, or all of them, so the pieces are compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnlens.capture.extra import require_package
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.meta_tokenizer import is_tiktoken
from attnlens.schemas.errors import ModelError

PROBES = ("alice and bob are siblings.", "3.14 == 1e3 日本 🙂")
"""Texts in which nothing is left to taste: no capitals, accents or runs of spaces, which some tokenizers change."""

UNKNOWN = "(unknown)"
OTHERS = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt")
"""Files of which one is read in place of a *.model file."""


def explain_vocabulary_files(name: str, folder: Path) -> None:
    """Raise what keeps the *.model files of model `name` from being read; return where it is none of that.

    Raises:
        MissingExtraError: a package that such a file needs is not installed.
        ModelError: the packages do not fit each other, or a file is damaged.
    """
    for path in _vocabulary_files(folder):
        if is_tiktoken(path):
            require_package("tiktoken", f"{path.name} of {name}, a tiktoken vocabulary,")
        else:
            _explain_sentencepiece(name, path)


def require_same_pieces(name: str, folder: Path, tokenizer: Any) -> None:
    """Return if `tokenizer`, converted from a sentencepiece model in `folder`, cuts text as sentencepiece does.

    Raises:
        ModelError: shows a text that it cuts otherwise.
    """
    from transformers import __version__

    models = _sentencepiece_models(folder)
    keep_prefix = not _says_prefix(folder)
    for text in PROBES if models else ():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ours = _cut(tokenizer.convert_ids_to_tokens(ids), getattr(tokenizer, "unk_token", None), prefix=keep_prefix)
        expected = [
            _cut(map(one.id_to_piece, one.encode(text)), one.id_to_piece(one.unk_id()), prefix=keep_prefix)
            for one in models.values()
        ]
        if ours not in expected:
            raise ModelError(
                f"{next(iter(models))} of {name}: transformers {__version__} makes a tokenizer of it that cuts "
                f"{text!r} into {_shown(ours)}, and sentencepiece into {_shown(expected[0])}; put the checkpoint's "
                "tokenizer_config.json or tokenizer.json beside it, or use another version of transformers"
            )


def _vocabulary_files(folder: Path) -> list[Path]:
    other = any((folder / name).is_file() for name in OTHERS)
    return [] if other else sorted(folder.glob("*.model"))


def _sentencepiece_models(folder: Path) -> dict[str, Any]:
    """Sentencepiece's own reader of each such file, by name."""
    found: dict[str, Any] = {}
    for path in _vocabulary_files(folder):
        if is_tiktoken(path) or find_spec("sentencepiece") is None:
            continue
        from sentencepiece import SentencePieceProcessor

        with suppress(OSError, RuntimeError, ValueError):  # some other file of that name
            found[path.name] = SentencePieceProcessor(model_file=str(path))
    return found


def _says_prefix(folder: Path) -> bool:
    """Whether the checkpoint has a word of its own on the space before a text."""
    try:
        return "add_prefix_space" in json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False


def _cut(pieces: Iterable[str], unknown: str | None, *, prefix: bool) -> list[str]:
    """Pieces as they can be compared: neighbours that are unknown count as one, by whatever name."""
    found: list[str] = []
    for piece in pieces:
        if piece != unknown:
            found.append(piece)
        elif found[-1:] != [UNKNOWN]:
            found.append(UNKNOWN)
    return found if prefix or not found else [piece for piece in (found[0].removeprefix("▁"), *found[1:]) if piece]


def _shown(pieces: list[str]) -> str:
    return " ".join(pieces[:6]) + (" …" if len(pieces) > 6 else "")


def _explain_sentencepiece(name: str, path: Path) -> None:
    for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")):
        require_package(package, f"{path.name} of {name}, a sentencepiece model,", module)
    from transformers.convert_slow_tokenizer import SentencePieceExtractor, import_protobuf

    try:
        import_protobuf()
    except Exception as error:
        raise ModelError(
            f"sentencepiece {version('sentencepiece')} does not work with protobuf {version('protobuf')}: "
            f"{one_line(error)}; pip install --upgrade sentencepiece protobuf"
        ) from error
    try:
        SentencePieceExtractor(str(path))
    except Exception as error:
        raise ModelError(
            f"{path.name} of {name} is neither a tiktoken vocabulary nor a sentencepiece model: {one_line(error)}"
        ) from error
