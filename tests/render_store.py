"""A small store with made-up numbers, written by the real writer, and the numbers that went in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.schemas.metadata import CaptureMetadata, LayerInfo, LensInfo, ModelInfo, Sampling
from attnlens.store.tools.seal import seal
from attnlens.store.writer import StoreWriter

WORDS = ("<s>", " Alice", " and", " Bob", "'s", "\n", "$$", " $\\frac$", "\x00", "\u4e2d\u56fd", "\u202eabc",
         "e\u0301", "\U0001f469\u200d\U0001f469", "x" * 300, "   ", "\ufffd", "", " \u05e9\u05dc", "<b>&amp;",
         "ok")  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What is in the store: weights float16 (layer, head, query, key), NaN in layers without attention."""

    path: Path
    n_prompt: int
    n_token: int
    weights: NDArray[np.float16]
    lens_token: NDArray[np.int32]
    lens_probability: NDArray[np.float32]
    token_id: list[int]
    token_text: list[str]
    lens_entropy: NDArray[np.float32]
    next_rank: NDArray[np.int32]


def make(
    path: Path,
    *,
    n_prompt: int = 6,
    n_generated: int = 5,
    n_layer: int = 3,
    n_head: int = 4,
    without_attention: tuple[int, ...] = (),
    lens: bool = True,
    append: bool = False,
    seed: int = 0,
    forced: bool = False,
    broken_off: int | None = None,
    raw: dict[int, bytes] | None = None,
    ids: list[int] | None = None,
    words: tuple[str, ...] = WORDS,
    n_kv_head: int | None = None,
    value_norm: NDArray[np.float32] | None = None,
) -> Made:
    """Write one capture. All tokens but the last are fed; all if `forced`; so many if it is `broken_off`.

    `ids` are the tokens, numbers of `words`; word 0 is special. `value_norm` (layer, head, key) is put beside the rest.
    """
    rng = np.random.default_rng(seed)
    n_token = n_prompt + n_generated
    n_fed = broken_off or (n_token if forced else n_token - 1)
    weights = np.tril(rng.random((n_layer, n_head, n_token, n_token)))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float16)
    weights[list(without_attention)] = np.nan
    token_id = ids or [position % len(words) for position in range(n_token)]
    texts = [words[number] for number in token_id]
    lens_token = rng.integers(0, len(words), (n_layer + 1, n_token, 2)).astype(np.int32)
    lens_token[..., 1] = (lens_token[..., 0] + 1 + lens_token[..., 1] % (len(words) - 1)) % len(words)  # two tokens
    lens_probability = np.sort(rng.random((n_layer + 1, n_token, 2)) / 2)[..., ::-1].astype(np.float32)

    lens_entropy = rng.random((n_layer + 1, n_token)).astype(np.float32)
    next_rank = rng.integers(0, len(words), (n_layer + 1, n_token)).astype(np.int32)

    writer = StoreWriter.create(path, append=append)
    metadata = _metadata(writer.new_id(), n_prompt, n_layer, n_head, without_attention, lens, n_token, len(words))
    metadata = _grouped(metadata, n_kv_head)
    with writer.capture(metadata, capacity=n_token + 7) as capture:
        pieces = [text.encode() for text in texts]
        for position, piece in (raw or {}).items():
            pieces[position] = piece
        capture.tokens(token_id, texts, pieces, [number == 0 for number in token_id])
        if lens:
            capture.vocabulary(list(range(len(words))), list(words))
        for layer in range(n_layer):
            if layer in without_attention:
                continue
            rows = weights[layer, :, :n_fed]
            capture.attention(layer, 0, 0, rows)
            late = rows[:, n_prompt - 1 :].astype(np.float32)
            capture.reductions(layer, n_prompt - 1, 0, late.max(0).astype(np.float16), late.mean(0).astype(np.float16))
        if lens:
            capture.lens(
                0,
                slice(0, n_layer + 1),
                {
                    "lens_token": lens_token[:, :n_fed],
                    "lens_probability": lens_probability[:, :n_fed],
                    "lens_entropy": lens_entropy[:, :n_fed],
                    "next_rank": next_rank[:, :n_fed],
                    "next_probability": np.full((n_layer + 1, n_fed), 0.5, np.float32),
                },
            )
        capture.model_probability(0, np.full(n_fed, 0.5, np.float32))
        capture.rows(n_fed)
        if broken_off is None:
            capture.finish({})
        else:
            capture.fail("broken off")
    if value_norm is not None:
        _put(path, metadata.id, "value_norm", ("layer", "head", "key"), value_norm)
    return Made(
        path, n_prompt, n_token, weights, lens_token, lens_probability, token_id, texts, lens_entropy, next_rank
    )


def _grouped(metadata: CaptureMetadata, n_kv_head: int | None) -> CaptureMetadata:
    """The same model, in whose layers several heads share a key and value head."""
    if n_kv_head is None:
        return metadata
    layers = [layer.model_copy(update={"n_kv_head": n_kv_head}) for layer in metadata.model.layers]
    return metadata.model_copy(update={"model": metadata.model.model_copy(update={"layers": layers})})


def _put(path: Path, capture: str, name: str, axes: tuple[str, ...], values: NDArray[np.float32]) -> None:
    """An array that the writer was not asked for. The capture is sealed again, or it would count as damaged."""
    group = zarr.open_group(path / capture, mode="r+", use_consolidated=False)
    group.create_array(name, data=values, dimension_names=axes)
    if json.loads((path / capture / "zarr.json").read_text())["attributes"]["attnlens"]["status"] == "complete":
        seal(path, capture)


def _metadata(
    name: str, n_prompt: int, n_layer: int, n_head: int, without: tuple[int, ...], lens: bool, n_token: int, size: int
) -> CaptureMetadata:
    layers = [
        LayerInfo(
            index=index,
            path=f"layers.{index}",
            kind="none" if index in without else "full",
            n_head=0 if index in without else n_head,
            n_kv_head=0 if index in without else n_head,
            key_features=4,
            value_features=4,
        )
        for index in range(n_layer)
    ]
    return CaptureMetadata(
        id=name,
        status="planned",
        committed=0,
        n_prompt=n_prompt,
        n_token=n_prompt,
        n_fed=0,
        prompt="made up",
        attention="dense",
        model=ModelInfo(
            id="made/up",
            architecture="None",
            config={},
            dtype="float32",
            n_layer=n_layer,
            n_head=n_head,
            vocabulary_size=size,
            layers=layers,
        ),
        lens=LensInfo(name="logit", modules=["norm", "head"], hash="0", top_k=2) if lens else None,
        lens_absent=None if lens else "the output head was not found",
        sampling=Sampling(forced=False, max_new_tokens=n_token - n_prompt, temperature=0.0, top_p=1.0, seed=0),
        versions={},
        device="cpu",
        created="2025-01-01T00:00:00+00:00",
    )
