"""Arrays beyond the usual, through the store and back: written in blocks, read by plain zarr and by the reader."""

from __future__ import annotations

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
from store_sample import Sample

N_FEATURE, TRACKED_IDS = 6, [7, 3]


class Rich(Sample):
    """A sample with every further array, of made-up numbers."""

    dtype = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = np.random.default_rng(1)
        depths, length = self.n_layer + 1, self.n_token
        stream = torch.from_numpy(rng.normal(size=(depths, length, N_FEATURE)).astype(np.float32))
        self.stream = stream.to(getattr(torch, self.dtype))
        held = self.stream.view(torch.uint16) if self.dtype == "bfloat16" else self.stream
        self.extra: dict[str, Any] = {
            "value_norm": rng.random((self.n_layer, self.n_head, length)).astype(np.float32),
            "residual": held.numpy(),
            "tracked_rank": rng.integers(0, 50, (depths, length, 2)).astype(np.int32),
            "tracked_probability": rng.random((depths, length, 2)).astype(np.float32),
        }
        other = Sample(n_prompt=self.n_prompt, n_generated=self.n_generated, n_layer=self.n_layer, seed=9)
        for name in READINGS:
            self.extra[reading(name, "tuned")] = other.lens_arrays[name]
            self.extra[MID[name]] = other.lens_arrays[name][1:]
        for name in TRACKED_READINGS:
            self.extra[reading(name, "tuned")] = self.extra[name]

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
                for layer in set(range(self.n_layer)) - set(self.none_layers):
                    out.lanes(start, slice(layer, layer + 1), {name: values[layer : layer + 1, :, start:stop]})
            elif name != "residual":
                out.lanes(start, slice(None), {name: values[:, start:stop]})


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
        stored = group[name][:]
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
    assert capture["residual"].dtype == sample.dtype
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
    assert absent["tracked"] == absent["residual"] == "it was not asked for"
    with pytest.raises(AbsentError, match="has no mid_entropy: attention and MLP are parallel"):
        attnlens.open(tmp_path / "run.zarr")[0]["mid_entropy"]


def test_rows_that_nobody_handed_over_are_never_committed(tmp_path: Path) -> None:
    sample = Rich()
    sample.extra.pop("value_norm")
    with pytest.raises(StoreError, match=r"value_norm: row 0 of index 0 .* never handed over"):
        sample.write(tmp_path / "run.zarr")
