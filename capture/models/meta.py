"""Llama in Meta's original layout: params.json, consolidated.00.pth …, tokenizer.model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnlens.capture.models.adapter import refuse_beside
from attnlens.capture.models.checkpoint import LAYOUTS, check_torch_file
from attnlens.capture.models.meta_params import MetaParams, read_params
from attnlens.capture.models.meta_shards import (
    check_names,
    check_ranks,
    find_shards,
    merge,
    open_shards,
    plan,
    set_aside,
    vocabulary_size,
)
from attnlens.capture.models.meta_tokenizer import (
    STOP,
    check_tokenizer,
    is_tiktoken,
    sentencepiece_tokenizer,
    tiktoken_tokenizer,
)
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.state import model_from_state
from attnlens.capture.models.tokenizer import load_tokenizer, tokenizer_name
from attnlens.progress import Progress
from attnlens.schemas.errors import ModelError

SUBFOLDER = "original"  # where Meta's files lie in a hub download


def matches(request: Request) -> bool:
    """A folder with params.json or consolidated.*.pth, itself or in `original/`, and not in transformers' layout."""
    return _folder(request.path) is not None


def _folder(path: Path) -> Path | None:
    if not path.is_dir() or ((path / "config.json").is_file() and any((path / name).is_file() for name in LAYOUTS)):
        return None
    for folder in (path, path / SUBFOLDER):
        if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
            return folder
    return None


def _require_folder(request: Request) -> Path:
    folder = _folder(request.path)
    if folder is None:
        raise ModelError(f"no params.json and consolidated.*.pth in {request.name}")
    for place in {request.path, folder}:
        refuse_beside(place, "Meta's layout")
    return folder


def _find_tokenizer(folder: Path) -> Path:
    for place in (folder, folder.parent) if folder.name == SUBFOLDER else (folder,):
        if (place / "tokenizer.model").is_file():
            return place / "tokenizer.model"
    raise ModelError(f"no tokenizer in {folder}: expected tokenizer.model beside params.json")


def check(request: Request) -> None:
    """Refuse what is incomplete, before torch is imported.

    Raises:
        ModelError: names the file.
    """
    request.refuse_revision("a local folder")
    folder = _require_folder(request)
    read_params(folder / "params.json")
    for shard in find_shards(folder):
        check_torch_file(shard)
    if request.tokenizer is None:
        check_tokenizer(_find_tokenizer(folder))


def _tokenizer(request: Request, folder: Path) -> tuple[Any, bool, str]:
    """The tokenizer, whether it is Llama 3's, and what messages call it."""
    elsewhere = load_tokenizer(request)
    if elsewhere is not None:
        return elsewhere, set(STOP) <= set(elsewhere.get_vocab()), f"the tokenizer {request.tokenizer}"
    file = _find_tokenizer(folder)
    check_tokenizer(file)
    tiktoken = is_tiktoken(file)
    return tiktoken_tokenizer(file) if tiktoken else sentencepiece_tokenizer(file), tiktoken, str(file)


def load(request: Request, progress: Progress) -> LoadedModel:
    """Load, put shards together, and rename to transformers' Llama.

    Raises:
        ModelError: names the tensor, what was found and what params.json asks for.
    """
    folder = _require_folder(request)
    params = read_params(folder / "params.json")
    shards = open_shards(find_shards(folder))
    vocabulary = vocabulary_size(params, shards)
    tied = "output.weight" not in shards[0]
    tensors = plan(params, vocabulary, tied=tied, embedding_axis=_embedding_axis(params, shards))
    left_out = set_aside(tensors, shards, params, request.ignore_weights)
    check_names(tensors, shards)
    check_ranks(tensors, shards)
    dtype = shards[0]["layers.0.attention.wq.weight"].dtype
    state = merge(tensors, shards, request.torch_dtype())
    tokenizer, tiktoken, called = _tokenizer(request, folder)
    if len(tokenizer) != vocabulary:  # as Meta's code asserts: a cut tokenizer would put the special tokens elsewhere
        raise ModelError(
            f"{called} has {len(tokenizer)} tokens and the embedding {vocabulary} rows: they do not belong together"
        )
    config = _config(params, vocabulary, tied=tied, tiktoken=tiktoken, tokenizer=tokenizer, dtype=dtype)
    model = model_from_state(request, config, state, dtype)
    _set_stop_tokens(model, tokenizer, tiktoken=tiktoken)
    name = folder.resolve().parent.name if folder.name == SUBFOLDER else folder.resolve().name
    return LoadedModel(model, tokenizer, name, tokenizer_id=tokenizer_name(request), left_out=left_out)


def outline(request: Request) -> tuple[Any, Any, str, Any]:
    """Configuration, tokenizer, name and dtype. Shards that are there are located, not read; they need not be there.

    Without them the vocabulary is the tokenizer's, head and embedding are two matrices, and the dtype is bfloat16.
    """
    import torch

    request.refuse_revision("a local folder")
    folder = _require_folder(request)
    params = read_params(folder / "params.json")
    tokenizer, tiktoken, _ = _tokenizer(request, folder)
    vocabulary, tied, dtype = params.vocab_size if params.vocab_size > 0 else len(tokenizer), False, torch.bfloat16
    if any(folder.glob("consolidated.*.pth")):
        shards = open_shards(find_shards(folder))
        vocabulary, tied = vocabulary_size(params, shards), "output.weight" not in shards[0]
        tensors = plan(params, vocabulary, tied=tied, embedding_axis=_embedding_axis(params, shards))
        set_aside(tensors, shards, params, request.ignore_weights)
        check_names(tensors, shards)
        check_ranks(tensors, shards)
        dtype = shards[0]["layers.0.attention.wq.weight"].dtype
    config = _config(params, vocabulary, tied=tied, tiktoken=tiktoken, tokenizer=tokenizer, dtype=dtype)
    name = folder.resolve().parent.name if folder.name == SUBFOLDER else folder.resolve().name
    return config, tokenizer, name, dtype


def _embedding_axis(params: MetaParams, shards: list[dict[str, Any]]) -> int:
    """Llama 2 splits the embedding's features over the ranks, Llama 3 its vocabulary."""
    embedding = shards[0].get("tok_embeddings.weight")
    return 1 if embedding is not None and embedding.ndim == 2 and embedding.shape[1] * len(shards) == params.dim else 0


def _config(params: MetaParams, vocabulary: int, *, tied: bool, tiktoken: bool, tokenizer: Any, dtype: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=params.dim,
        intermediate_size=params.hidden,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.kv_heads,
        head_dim=params.features,
        rms_norm_eps=params.norm_eps,
        rope_parameters=params.rope(),
        max_position_embeddings=params.context(tiktoken=tiktoken),
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )


def _set_stop_tokens(model: Any, tokenizer: Any, *, tiktoken: bool) -> None:
    """End of text, end of message and end of turn, as in Meta's code."""
    if tiktoken:
        model.generation_config.eos_token_id = sorted(tokenizer.convert_tokens_to_ids(list(STOP)))
