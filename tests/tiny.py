"""Tiny random models and tokenizers, built offline, and the folders they live in."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "Alice and Bob are siblings. Who is Bob's sister? Explain in one sentence.",
    "The quick brown fox jumps over the lazy dog, and the dog is not amused at all.",
    "def add(a, b):\n    return a + b  # 2 + 2 == 4, 10 + 20 == 30",
    "Der Fluß fließt; où est l'été? Где сестра Боба? 今日はいい天気ですね。 🙂🙃",
] * 3
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def wrap(backend: Tokenizer, template: str | None = None, **options: Any) -> Any:
    """For transformers; text begins with <begin>."""
    begin = backend.token_to_id("<begin>")
    backend.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<begin>",
        eos_token="<end>",
        pad_token="<pad>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **options,
    )


SPECIAL = ["<pad>", "<begin>", "<end>"]


def byte_level_tokenizer(template: str | None = None, size: int = 380) -> Any:
    """Byte-pair pieces over GPT-2's byte alphabet: every text round-trips."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrap(backend, template)


def byte_fallback_tokenizer() -> Any:
    """Unigram pieces with ▁ for spaces, and single bytes for characters the corpus does not have."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(CORPUS[:3], trainer)
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    known = [(piece, score) for piece, score in pieces if piece != "<unk>"]
    bytes_ = [(f"<0x{value:02X}>", -20.0) for value in range(256)]
    vocabulary = [("<unk>", 0.0), *((name, 0.0) for name in SPECIAL), *bytes_, *known]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(backend, unk_token="<unk>")


def wordpiece_tokenizer() -> Any:
    """Lower-cased words and ##ends."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    backend.train_from_iterator(CORPUS[:3], trainer)
    return wrap(backend, unk_token="<unk>")


def llama_config(**changes: Any) -> Any:
    """Three layers, four heads over two of keys and values."""
    return LlamaConfig(
        **{
            "vocab_size": 384,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            **changes,
        }
    )


def llama(seed: int = 0, **changes: Any) -> Any:
    """A random Llama in eval mode."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(**changes)).eval()


def write_hf(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE, **changes: Any) -> Any:
    """A folder in Hugging Face's layout; returns the model in it."""
    model = llama(seed, **changes)
    model.save_pretrained(folder)
    byte_level_tokenizer(template).save_pretrained(folder)
    return model


# Meta's layout

META = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "norm_eps": 1e-5}


def write_tiktoken(path: Path) -> dict[bytes, int]:
    """The 256 bytes and some merges: 300 ranks."""
    ranks = {bytes([value]): value for value in range(256)}
    words = [b"th", b"the", b" t", b" the", b"an", b"and", b" a", b" and", b"is", b" s", b"si", b"sib", b"in", b"ing"]
    words += [bytes([97 + i, 97 + j]) for i in range(6) for j in range(5)]
    for word in words:
        ranks.setdefault(word, len(ranks))
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return ranks


def meta_state(
    params: dict[str, Any], vocabulary: int, seed: int = 0, *, tied: bool = False
) -> dict[str, torch.Tensor]:
    """Random tensors under Meta's names, float32."""
    generator = torch.Generator().manual_seed(seed)
    dim, features = params["dim"], params["dim"] // params["n_heads"]
    kv = params.get("n_kv_heads", params["n_heads"]) * features
    hidden = int(params.get("ffn_dim_multiplier", 1.0) * int(8 * dim / 3))
    hidden = -(-hidden // params["multiple_of"]) * params["multiple_of"]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(dim, generator=generator)

    state = {"tok_embeddings.weight": torch.randn(vocabulary, dim, generator=generator), "norm.weight": norm()}
    if not tied:
        state["output.weight"] = random(vocabulary, dim)
    for index in range(params["n_layers"]):
        at = f"layers.{index}."
        state |= {
            at + "attention.wq.weight": 3 * random(dim, dim),
            at + "attention.wk.weight": 3 * random(kv, dim),
            at + "attention.wv.weight": random(kv, dim),
            at + "attention.wo.weight": random(dim, dim),
            at + "feed_forward.w1.weight": random(hidden, dim),
            at + "feed_forward.w2.weight": random(dim, hidden),
            at + "feed_forward.w3.weight": random(hidden, dim),
            at + "attention_norm.weight": norm(),
            at + "ffn_norm.weight": norm(),
        }
    return state


def split_state(state: dict[str, torch.Tensor], ranks: int, *, embedding_axis: int) -> list[dict[str, torch.Tensor]]:
    """What each of `ranks` model-parallel processes would have saved."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, tensor in state.items():
        if "norm" in name:
            pieces = [tensor] * ranks
        else:
            column = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok_") and embedding_axis == 1)
            pieces = list(tensor.chunk(ranks, dim=1 if column else 0))
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece.clone()
    return shards


def write_meta(
    folder: Path,
    params: dict[str, Any] | None = None,
    *,
    ranks: int = 1,
    embedding_axis: int = 0,
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A folder in Meta's layout with a tiktoken vocabulary of 300 + 256 tokens; returns its params and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    params = {**META, **(params or {})}
    vocabulary = len(write_tiktoken(folder / "tokenizer.model")) + 256
    state = {name: tensor.to(dtype) for name, tensor in meta_state(params, vocabulary, seed, tied=tied).items()}
    for rank, shard in enumerate(split_state(state, ranks, embedding_axis=embedding_axis)):
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return params, state


@dataclass
class MetaPass:
    """What Meta's equations give, float64: logits of every depth (depth, token, vocabulary), depth 0 the embedding,
    and attention (layer, head, query, key)."""

    lens: torch.Tensor
    attention: torch.Tensor


def meta_logits(params: dict[str, Any], state: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Logits (token, vocabulary) by the equations of Meta's code."""
    return meta_pass(params, state, ids).lens[-1]


def meta_pass(params: dict[str, Any], state: dict[str, torch.Tensor], ids: list[int]) -> MetaPass:
    """The equations of Meta's code, written down independently of transformers."""
    state = {name: tensor.double() for name, tensor in state.items()}
    heads, features = params["n_heads"], params["dim"] // params["n_heads"]
    kv = params.get("n_kv_heads", heads)
    frequencies = 1.0 / params.get("rope_theta", 10000.0) ** (torch.arange(0, features, 2).double() / features)
    if params.get("use_scaled_rope"):
        wavelength = 2 * torch.pi / frequencies
        smooth = ((8192 / wavelength - 1) / (4 - 1)).clamp(0, 1)
        frequencies = (1 - smooth) * frequencies / 8 + smooth * frequencies
    angles = torch.outer(torch.arange(len(ids)).double(), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weight

    def rotated(x: torch.Tensor, count: int) -> torch.Tensor:
        pairs = torch.view_as_complex(x.view(len(ids), count, features // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(2)

    def read(x: torch.Tensor) -> torch.Tensor:
        return normed(x, state["norm.weight"]) @ state.get("output.weight", state["tok_embeddings.weight"]).T

    x = state["tok_embeddings.weight"][ids]
    lens, attention = [read(x)], []
    future = torch.full((len(ids), len(ids)), float("-inf")).double().triu(1)
    for index in range(params["n_layers"]):
        at = f"layers.{index}."
        weight = {name: state[f"{at}{name}.weight"] for name in ("attention.wq", "attention.wk", "attention.wv")}
        h = normed(x, state[at + "attention_norm.weight"])
        query = rotated(h @ weight["attention.wq"].T, heads)
        key = rotated(h @ weight["attention.wk"].T, kv).repeat_interleave(heads // kv, 1)
        value = (h @ weight["attention.wv"].T).view(len(ids), kv, features).repeat_interleave(heads // kv, 1)
        scores = torch.einsum("qhf,khf->hqk", query, key) / features**0.5 + future
        attention.append(scores.softmax(-1))
        mixed = torch.einsum("hqk,khf->qhf", attention[-1], value).flatten(1)
        x = x + mixed @ state[at + "attention.wo.weight"].T
        h = normed(x, state[at + "ffn_norm.weight"])
        gate = torch.nn.functional.silu(h @ state[at + "feed_forward.w1.weight"].T)
        x = x + (gate * (h @ state[at + "feed_forward.w3.weight"].T)) @ state[at + "feed_forward.w2.weight"].T
        lens.append(read(x))
    return MetaPass(torch.stack(lens), torch.stack(attention))
