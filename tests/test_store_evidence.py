"""Arrays beyond the usual, through the store and back: written in blocks, read by plain zarr and by the reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import attnlens
from attnlens.schemas.arrays import MID, READINGS, TRACKED_READINGS, reading
from attnlens.schemas.errors import AbsentError, StoreError
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store.info import describe
from attnlens.store.verify import verify
from attnlens.store.writer import CaptureWriter, StoreWriter
from plain_bits import own_order
from store_sample import Sample

N_FEATURE, TRACKED_IDS = 6, [7, 3]


class Rich(Sample):
    """A sample with every further array, of made-up numbers."""

    dtype = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.words[7], self.words[3] = "seven", "?three"
        self.texts = [self.words[number] for number in self.ids]
        self.raw = [text.encode() for text in self.texts]
        rng = np.random.default_rng(1)
        depths, length = self.n_layer + 1, self.n_token
        stream = torch.from_numpy(rng.normal(size=(depths, length, N_FEATURE)).astype(np.float32))
        self.stream = stream.to(getattr(torch, self.dtype))
        held = self.stream.view(torch.uint16) if self.dtype == "bfloat16" else self.stream
        self.extra: dict[str, Any] = {
            "value_norm": rng.random((self.n_layer, self.n_head, length)).astype(np.float32),
            "residual": held.numpy(),
        }
        first, tuned = (rng.dirichlet(np.ones(self.vocabulary_size), (depths, length)) for _ in range(2))
        tuned[-1] = first[-1]  # at the last depth every lens reads what the model itself does
        found, other = self.readings(first), self.readings(tuned)
        self.lens_arrays = {name: found[name] for name in READINGS}
        self.model_probability = found["next_probability"][-1]
        self.extra |= {name: found[name] for name in TRACKED_READINGS}
        self.extra |= {reading(name, "tuned"): other[name] for name in (*READINGS, *TRACKED_READINGS)}
        self.extra |= {MID[name]: other[name][1:].copy() for name in READINGS}
        for layer in self.none_layers:
            for name in MID.values():
                self.extra[name][layer] = np.nan if self.extra[name].dtype.kind == "f" else -1

    def readings(self, p: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """What a lens keeps of probabilities (depth, token, vocabulary)."""
        p = p.astype(np.float32)
        order = np.argsort(-p, axis=-1, kind="stable")[..., : self.top_k]
        following = np.append(self.ids[1:], 0)
        likely = np.take_along_axis(p, np.broadcast_to(following[:, None], (*p.shape[:2], 1)), -1)
        rank = (p > likely).sum(-1)
        rank[:, -1], likely[:, -1] = -1, np.nan
        tracked = p[..., TRACKED_IDS]
        return {
            "lens_token": order.astype(np.int32),
            "lens_probability": np.take_along_axis(p, order, -1),
            "lens_entropy": -(p * np.log(p)).sum(-1),
            "next_rank": rank.astype(np.int32),
            "next_probability": likely[..., 0],
            "tracked_rank": (p[..., None, :] > tracked[..., None]).sum(-1).astype(np.int32),
            "tracked_probability": tracked,
        }

    def metadata(self, **changes: Any) -> CaptureMetadata:
        tuned = {"name": "tuned", "modules": ["norm", "head"], "hash": "1" * 64, "top_k": self.top_k, "source": "mine"}
        names = ["value_norm", "residual", "tracked_id", "tracked_text", *TRACKED_READINGS, *MID.values()]
        return super().metadata(
            lenses=[tuned],
            evidence=names,
            tracked=TRACKED_IDS,
            residual={"n_feature": N_FEATURE, "dtype": self.dtype},
            **changes,
        )

    def hand_over_lens(self, out: CaptureWriter, start: int, stop: int) -> None:
        super().hand_over_lens(out, start, stop)
        if start == 0:
            out.tracked(["seven", "\ud800three"])
        for lane in range(self.n_layer + 1):  # depth after depth, as a model does
            out.lanes(start, slice(lane, lane + 1), {"residual": self.extra["residual"][lane : lane + 1, start:stop]})
        for name, values in self.extra.items():
            if name == "value_norm":
                for layer in self.attending:
                    out.lanes(start, slice(layer, layer + 1), {name: values[layer : layer + 1, :, start:stop]})
            elif name != "residual":
                lanes = range(len(values)) if not name.startswith("mid_") else self.attending
                for lane in lanes:
                    out.lanes(start, slice(lane, lane + 1), {name: values[lane : lane + 1, start:stop]})

    @property
    def attending(self) -> list[int]:
        """Layers with attention."""
        return sorted(set(range(self.n_layer)) - set(self.none_layers))


class Half(Rich):
    dtype = "bfloat16"


@pytest.mark.parametrize("kind", [Rich, Half])
@pytest.mark.parametrize("hold", [0, 1 << 20])
def test_every_array_comes_back(kind: type[Rich], hold: int, tmp_path: Path) -> None:
    sample = kind(n_prompt=21, n_generated=12, none_layers=(1,))
    sample.write(tmp_path / "run.zarr", key_rows_hold=hold)
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r")["0000"]
    fed = sample.n_fed
    for name, values in sample.extra.items():
        stored = own_order(group[name], group[name][:])
        rows = (slice(None), slice(None), slice(0, fed)) if name == "value_norm" else (slice(None), slice(0, fed))
        expected = values[rows].copy()
        if name == "value_norm":
            expected[1] = np.nan
        np.testing.assert_array_equal(stored[rows], expected, err_msg=name)
        assert stored.shape == values.shape
    assert group["tracked_id"][:].tolist() == TRACKED_IDS
    assert group["tracked_text"][:].tolist() == ["seven", "?three"]
    bits = group["residual"].attrs["attnlens"].get("bits")
    assert bits == ("bfloat16" if kind is Half else None)
    chunk = group["residual"].chunks
    assert (chunk[0] == 1) == (hold == 0)

    capture = attnlens.open(tmp_path / "run.zarr")[0]
    read = capture["residual"][:, :fed]
    np.testing.assert_array_equal(read, sample.stream[:, :fed].float().numpy())
    assert np.isnan(capture["residual"][:, fed:]).all()
    assert capture["residual"].kind == sample.dtype
    with pytest.raises(AbsentError, match="was not fed"):
        capture["value_norm"].isel(key=fed)
    assert capture.lens_names == ["logit", "tuned"]
    np.testing.assert_array_equal(
        capture.reading("next_rank", "tuned")[:, :fed], sample.extra["next_rank_tuned"][:, :fed]
    )
    np.testing.assert_array_equal(capture.reading("next_rank", "logit")[:], capture["next_rank"][:])
    with pytest.raises(AbsentError, match="no lens 'mine': it has logit, tuned"):
        capture.reading("next_rank", "mine")
    assert verify(tmp_path / "run.zarr").problems == []
    assert not {"value_norm", "residual", "mid", "tracked"} & set(describe(tmp_path / "run.zarr").captures[0].absent)


def test_what_is_absent_says_why(tmp_path: Path) -> None:
    sample = Sample()
    with StoreWriter.create(tmp_path / "run.zarr").capture(
        sample.metadata(absent={"value_norm": "no projection was found", "mid": "attention and MLP are parallel"}),
        capacity=12,
    ) as out:
        sample.prompt(out)
        out.finish()
    absent = describe(tmp_path / "run.zarr").captures[0].absent
    assert absent["value_norm"] == "no projection was found"
    assert absent["mid"] == "attention and MLP are parallel"
    assert not {"tracked", "residual"} & set(absent)  # nobody asked for them
    with pytest.raises(AbsentError, match="has no residual: it was not asked for"):
        attnlens.open(tmp_path / "run.zarr")[0]["residual"]
    with pytest.raises(AbsentError, match="has no mid_entropy: attention and MLP are parallel"):
        attnlens.open(tmp_path / "run.zarr")[0]["mid_entropy"]


def test_rows_that_nobody_handed_over_are_never_committed(tmp_path: Path) -> None:
    sample = Rich()
    sample.extra.pop("value_norm")
    with pytest.raises(StoreError, match=r"value_norm: row 0 of index 0 .* never handed over"):
        sample.write(tmp_path / "run.zarr")


@pytest.mark.parametrize(
    ("name", "cell", "value", "message"),
    [
        ("value_norm", (0, 1, 3), -1.0, "layer 0, head 1, key 3: is negative or no number"),
        ("value_norm", (0, 1, 3), np.nan, "layer 0, head 1, key 3: is negative or no number"),
        ("tracked_rank", (1, 2, 0), 50, "depth 1, token 2: outside the vocabulary"),
        ("tracked_probability", (1, 2, 0), 1.5, "depth 1, token 2: outside 0 … 1"),
        ("tracked_probability_tuned", (1, 2, 0), -0.5, "depth 1, token 2: outside 0 … 1"),
        ("lens_entropy_tuned", (1, 2), 9.0, r"depth 1, token 2: outside 0 … log\(vocabulary\)"),
        ("lens_token_tuned", (3, 2, 0), 77, "depth 3, token 2: id outside the vocabulary"),
        ("next_probability_tuned", (-1, 2), 0.9, "depth 3, token 2: the last depth differs from model_probability"),
        ("mid_probability", (2, 1, 0), 0.0, "layer 2, token 1: ranks are not in descending order"),
        ("mid_next_rank", (0, 4), -1, "layer 0, token 4: outside the vocabulary"),
        ("tracked_id", (0,), 9, "is not the list in the capture's metadata"),
    ],
)
def test_verify_finds_values_that_cannot_be(
    name: str, cell: tuple[int, ...], value: float, message: str, tmp_path: Path
) -> None:
    Rich(none_layers=(1,)).write(tmp_path / "run.zarr")
    group: Any = zarr.open_group(tmp_path / "run.zarr", mode="r+", use_consolidated=False)["0000"]
    group[name][cell] = value
    found = [str(problem) for problem in verify(tmp_path / "run.zarr").problems if problem.kind == "value"]
    assert any(re.search(f"0000/{name}.*: {message}", problem) for problem in found), found
