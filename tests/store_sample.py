"""A synthetic producer: writes captures of made-up numbers, and keeps what it handed over for comparison."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store.writer import CaptureWriter, StoreWriter


@dataclass
class Sample:
    """Everything that one capture should hold, as plain arrays over the whole timeline."""

    n_prompt: int = 5
    n_generated: int = 4
    n_layer: int = 3
    n_head: int = 2
    top_k: int = 3
    vocabulary_size: int = 50
    none_layers: tuple[int, ...] = ()
    sliding: dict[int, int] = field(default_factory=dict)
    feed_all: bool = False
    lens: bool = True
    attention: bool = True
    seed: int = 0
    name: str = "0000"

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        length = self.n_prompt + self.n_generated
        self.n_token = length
        self.n_fed = length if self.feed_all else length - 1
        depth, ranks = self.n_layer + 1, self.top_k
        logits = rng.normal(size=(self.n_layer, self.n_head, length, length)).astype(np.float32)
        query, key = np.mgrid[:length, :length]
        weights = np.zeros_like(logits)
        for layer in range(self.n_layer):
            seen = (key <= query) & (key > query - self.sliding.get(layer, length))
            row = np.where(seen, np.exp(logits[layer]), 0)
            weights[layer] = row / row.sum(-1, keepdims=True)
        self.weights = weights.astype(np.float16)
        self.maximum = self.weights.max(1)
        self.mean = self.weights.astype(np.float32).mean(1).astype(np.float16)
        self.ids = rng.integers(0, self.vocabulary_size, length).astype(np.int32)
        odd = "é$_\t\n" * 3
        self.words = [f"{odd[i % 7 :][:3] if i % 7 else 'v'}{i}" for i in range(self.vocabulary_size)]
        self.texts = [self.words[i] for i in self.ids]
        self.raw = [text.encode() for text in self.texts]
        self.special = [t % 4 == 0 for t in range(length)]
        p = rng.dirichlet(np.ones(self.vocabulary_size), (depth, length)).astype(np.float32)
        order = np.argsort(-p, axis=-1, kind="stable")[..., :ranks]
        after = np.append(self.ids[1:], 0)
        nextp = np.take_along_axis(p, np.broadcast_to(after[None, :, None], (depth, length, 1)), -1)[..., 0]
        self.lens_arrays: dict[str, Any] = {
            "lens_token": order.astype(np.int32),
            "lens_probability": np.take_along_axis(p, order, -1),
            "lens_entropy": -(p * np.log(p)).sum(-1).astype(np.float32),
            "next_rank": (p > nextp[..., None]).sum(-1).astype(np.int32),
            "next_probability": nextp.copy(),
        }
        self.lens_arrays["next_rank"][:, -1] = -1
        self.lens_arrays["next_probability"][:, -1] = np.nan
        self.model_probability = nextp[-1].copy()
        self.model_probability[-1] = np.nan

    def metadata(self, **changes: Any) -> CaptureMetadata:
        layers = [
            {
                "index": i,
                "path": f"model.layers.{i}.self_attn",
                "kind": "none" if i in self.none_layers else "sliding" if i in self.sliding else "full",
                "n_head": self.n_head,
                "n_kv_head": 1,
                "key_features": 4,
                "value_features": 4,
                "window": self.sliding.get(i),
            }
            for i in range(self.n_layer)
        ]
        values: dict[str, Any] = {
            "id": self.name,
            "status": "planned",
            "committed": 0,
            "n_prompt": self.n_prompt,
            "n_token": self.n_prompt,
            "n_fed": 0,
            "prompt": "Who is Bob’s sister?",
            "attention": "dense" if self.attention else None,
            "attention_absent": None if self.attention else "not asked for",
            "model": {
                "id": "synthetic",
                "architecture": "SyntheticForCausalLM",
                "config": {"hidden_size": 8},
                "dtype": "float32",
                "n_layer": self.n_layer,
                "n_head": self.n_head,
                "vocabulary_size": self.vocabulary_size,
                "layers": layers,
            },
            "lens": {"name": "logit", "modules": ["norm", "head"], "hash": "0" * 64, "top_k": self.top_k}
            if self.lens
            else None,
            "lens_absent": None if self.lens else "no head",
            "sampling": {"forced": False, "max_new_tokens": 9, "temperature": 0.0, "top_p": 1.0, "seed": 0},
            "versions": {"attnlens": "0"},
            "device": "cpu",
            "created": "2025-01-01T00:00:00+00:00",
        }
        return CaptureMetadata.model_validate({**values, **changes})

    def hand_over_tokens(self, out: CaptureWriter, start: int, stop: int) -> None:
        part = slice(start, stop)
        out.tokens([int(i) for i in self.ids[part]], self.texts[part], self.raw[part], self.special[part])

    def hand_over_attention(self, out: CaptureWriter, layer: int, start: int, stop: int) -> None:
        if not self.attention or layer in self.none_layers:
            return
        first = max(0, start - self.sliding.get(layer, self.n_token) + 1)
        out.attention(layer, start, first, self.weights[layer, :, start:stop, first:stop])
        low = max(start, self.n_prompt - 1)
        if low < stop:
            maximum, mean = self.maximum[layer, low:stop, :stop], self.mean[layer, low:stop, :stop]
            out.reductions(layer, low, 0, maximum, mean)

    def hand_over_lens(self, out: CaptureWriter, start: int, stop: int) -> None:
        if self.lens:
            out.lens(start, slice(None), {name: values[:, start:stop] for name, values in self.lens_arrays.items()})
        out.model_probability(start, self.model_probability[start:stop])

    def prompt(self, out: CaptureWriter, block: int = 4) -> None:
        """Hand over the prompt as a model does: layer by layer, in blocks of rows."""
        self.hand_over_tokens(out, 0, self.n_prompt)
        if self.lens:
            ids = list(range(self.vocabulary_size))
            out.vocabulary(ids, self.words)
        for layer in range(self.n_layer):
            for start in range(0, self.n_prompt, block):
                self.hand_over_attention(out, layer, start, min(self.n_prompt, start + block))
        for start in range(0, self.n_prompt, block):
            self.hand_over_lens(out, start, min(self.n_prompt, start + block))
        out.rows(self.n_prompt)

    def step(self, out: CaptureWriter, row: int) -> None:
        """Hand over one generated token: row `row` was fed."""
        self.hand_over_tokens(out, row, row + 1)
        if row >= self.n_fed:
            return
        for layer in range(self.n_layer):
            self.hand_over_attention(out, layer, row, row + 1)
        self.hand_over_lens(out, row, row + 1)
        out.rows(row + 1)

    def write(
        self, store: StoreWriter | Path | str, *, capacity: int | None = None, block: int = 4, **options: Any
    ) -> None:
        """Write a whole capture."""
        writer = store if isinstance(store, StoreWriter) else StoreWriter.create(store)
        self.name = writer.new_id()
        with writer.capture(self.metadata(), capacity=capacity or self.n_token + 3, **options) as out:
            self.prompt(out, block)
            for row in range(self.n_prompt, self.n_token):
                self.step(out, row)
            out.finish({"completion": "Alice."})

    def expected(self) -> dict[str, np.ndarray[Any, Any]]:
        """Every array of the finished capture except the manifest, made without any code of the store."""
        length, fed = self.n_token, self.n_fed
        weight, maximum, mean = (a.copy() for a in (self.weights, self.maximum, self.mean))
        weight[:, :, fed:] = maximum[:, fed:] = mean[:, fed:] = np.nan
        for layer in self.none_layers:
            weight[layer] = maximum[layer] = mean[layer] = np.nan
        origin = self.n_prompt - 1
        arrays: dict[str, Any] = {
            "token": np.arange(length),
            "token_id": self.ids,
            "token_text": np.array(self.texts, dtype=object),
            "token_special": np.array(self.special),
            "token_bytes": np.frombuffer(b"".join(self.raw), np.uint8),
            "token_byte_offset": np.cumsum([0, *map(len, self.raw)]),
            "model_probability": np.where(np.arange(length) < fed, self.model_probability, np.nan),
        }
        if self.attention:
            arrays |= {
                "query": np.arange(length),
                "key": np.arange(length),
                "layer": np.arange(self.n_layer),
                "head": np.arange(self.n_head),
                "generated": np.arange(origin, length),
                "attention_weight": weight,
                "attention_max": maximum[:, origin:].swapaxes(0, 1),
                "attention_mean": mean[:, origin:].swapaxes(0, 1),
            }
        if self.lens:
            arrays |= {
                "depth": np.arange(self.n_layer + 1),
                "vocabulary_id": np.arange(self.vocabulary_size),
                "vocabulary_text": np.array(self.words, dtype=object),
            }
            for name, values in self.lens_arrays.items():
                values = values.copy()
                values[:, fed:] = -1 if values.dtype.kind == "i" else np.nan
                arrays[name] = values
        return arrays


def plain_zip(store: Path, path: Path, *, top: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of a store as any program makes it: whatever the files are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(store.rglob("*")):
            archive.write(file, top + file.relative_to(store).as_posix())
    return path


def tree_hash(folder: Path) -> str:
    """One hash over every name and byte below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
