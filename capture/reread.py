"""What a store kept of the residual streams, read by lenses that were not there when it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnlens.capture.entries import VocabularyEntries
from attnlens.capture.equipment import Lens
from attnlens.capture.finite import check_readings
from attnlens.capture.lenses.reader import LaneReader, depth_names
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress
from attnlens.store.reader import Capture
from attnlens.store.tools.extend import Extension

ROWS = 512
"""Tokens that are read at a time."""


def residuals(capture: Capture, depth: int, tokens: Any, device: torch.device) -> torch.Tensor:
    """Residuals (token, feature) of a depth, as the model had them."""
    info = capture.metadata.residual
    assert info is not None
    values = capture["residual"][depth, tokens]
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, getattr(torch, info.dtype))


def read_again(
    extension: Extension,
    capture: Capture,
    lenses: Sequence[Lens],
    vocabulary: Vocabulary,
    device: torch.device,
    progress: Progress,
) -> None:
    """Fill the arrays of `lenses`: tokens from where the capture's lenses begin, of these what a crop has left.

    Raises:
        ModelError: what a lens makes of a stream overflows.
    """
    about = extension.metadata
    entries = VocabularyEntries(
        extension.vocabulary, vocabulary, capture.vocabulary if "vocabulary_id" in capture else ()
    )
    depths, read = _kept(capture, "depth", about.model.n_layer + 1), _kept(capture, "token", capture.committed)
    read = read[read >= capture.lens_start]
    first = about.lens.name if about.lens else ""
    tracked = torch.tensor(about.tracked) if about.tracked else None
    readers = [
        LaneReader(
            lens=lens.tail,
            lanes=depths.tolist(),
            names=depth_names(None if lens.info.name == first else lens.info.name, tracked=tracked is not None),
            top_k=lens.info.top_k,
            translators=lens.translators,
            tracked=tracked,
        )
        for lens in lenses
    ]
    dtype: torch.dtype = getattr(torch, about.model.dtype, torch.float32)
    following = np.append(capture.token_id[1:], -1).astype(np.int64)
    progress.stage(f"{capture.id} reading", capture.committed, "tokens")
    for start in range(0, capture.committed, ROWS):
        stop = min(start + ROWS, capture.committed)
        tokens = read[(read >= start) & (read < stop)]
        after = torch.from_numpy(following[tokens]).to(device)
        for reader in readers:
            rows = [
                reader.one(depth, residuals(capture, depth, tokens, device), after)
                for depth in (reader.lanes if len(tokens) else ())
            ]
            if rows:
                entropy = np.stack([arrays[reader.names["lens_entropy"]] for arrays in rows])
                check_readings(entropy, [f"depth {depth}" for depth in reader.lanes], tokens.tolist(), dtype)
                entries.use(np.stack([arrays[reader.token_array] for arrays in rows]))
            for name in reader.names.values():
                # What is not read is written as well: a missing chunk would look like damage.
                array = extension.arrays[name]
                block = np.full((array.shape[0], stop - start, *array.shape[2:]), array.fill_value, array.dtype)
                if rows:
                    block[np.ix_(depths, tokens - start)] = np.stack([arrays[name] for arrays in rows])
                array[:, start:stop] = block
        progress.advance(stop - start)


def _kept(capture: Capture, axis: str, size: int) -> NDArray[np.intp]:
    """Which of the first `size` places on an axis a crop has left, all if there was none."""
    kept = capture.kept.get(axis)
    return np.arange(size) if kept is None else np.flatnonzero(kept[:size])
