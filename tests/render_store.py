"""A small store with made-up numbers, written by the real writer, and the numbers that went in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.metadata import CaptureMetadata, LayerInfo, LensInfo, ModelInfo, Sampling
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
) -> Made:
    """Write one capture. All tokens but the last are fed; all if `forced`; so many if it is `broken_off`."""
    rng = np.random.default_rng(seed)
    n_token = n_prompt + n_generated
    n_fed = broken_off or (n_token if forced else n_token - 1)
    weights = np.tril(rng.random((n_layer, n_head, n_token, n_token)))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float16)
    weights[list(without_attention)] = np.nan
    token_id = [position % len(WORDS) for position in range(n_token)]
    texts = [WORDS[number] for number in token_id]
    lens_token = rng.integers(0, len(WORDS), (n_layer + 1, n_token, 2)).astype(np.int32)
    lens_probability = np.sort(rng.random((n_layer + 1, n_token, 2)) / 2)[..., ::-1].astype(np.float32)

    writer = StoreWriter.create(path, append=append)
    metadata = _metadata(writer.new_id(), n_prompt, n_layer, n_head, without_attention, lens, n_token)
    with writer.capture(metadata, capacity=n_token + 7) as capture:
        pieces = [text.encode() for text in texts]
        for position, piece in (raw or {}).items():
            pieces[position] = piece
        capture.tokens(token_id, texts, pieces, [number == 0 for number in token_id])
        if lens:
            capture.vocabulary(list(range(len(WORDS))), list(WORDS))
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
                    "lens_entropy": np.ones((n_layer + 1, n_fed), np.float32),
                    "next_rank": np.zeros((n_layer + 1, n_fed), np.int32),
                    "next_probability": np.full((n_layer + 1, n_fed), 0.5, np.float32),
                },
            )
        capture.model_probability(0, np.full(n_fed, 0.5, np.float32))
        capture.rows(n_fed)
        if broken_off is None:
            capture.finish({})
        else:
            capture.fail("broken off")
    return Made(path, n_prompt, n_token, weights, lens_token, lens_probability, token_id, texts)


def _metadata(
    name: str, n_prompt: int, n_layer: int, n_head: int, without: tuple[int, ...], lens: bool, n_token: int
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
            vocabulary_size=len(WORDS),
            layers=layers,
        ),
        lens=LensInfo(name="logit", modules=["norm", "head"], hash="0", top_k=2) if lens else None,
        lens_absent=None if lens else "the output head was not found",
        sampling=Sampling(forced=False, max_new_tokens=n_token - n_prompt, temperature=0.0, top_p=1.0, seed=0),
        versions={},
        device="cpu",
        created="2025-01-01T00:00:00+00:00",
    )
