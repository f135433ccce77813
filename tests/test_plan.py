"""`lens plan`: what it says of a store is what plain zarr says of the capture that was planned; no weight is needed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
import zarr
from typer.testing import CliRunner

from attnlens.capture import capture
from attnlens.capture.forecast.forecast import Forecast, forecast
from attnlens.capture.forecast.live import LiveBytes
from attnlens.capture.forecast.sizes import visible_share
from attnlens.capture.forecast.sketch import sketch
from attnlens.capture.run import CaptureOptions
from attnlens.cli import app
from attnlens.progress import Silent
from attnlens.schemas.errors import AttnlensError
from attnlens.schemas.metadata import LayerInfo
from families import CACHE, FAMILIES, byte_tokenizer, tiny_model
from tiny import write_meta

TEXT_DECIDES = {"token_bytes", "vocabulary_id", "vocabulary_text", "manifest_file", "manifest_sha256"}


def folder_of(path: Path, config: Any) -> Path:
    """A folder with a configuration and a tokenizer, and no weights."""
    config.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def planned(folder: Path | str, **options: Any) -> Forecast:
    chosen = {"prompt": "The quick fox", "raw": True, "completion": "abcdef", "output": Path("never.zarr"), **options}
    return forecast(CaptureOptions(model=str(folder), **chosen), Silent())


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma2", "gpt2", "gpt_oss", "llama", "opt"])
@pytest.mark.parametrize("mode", ["dense", "qk"])
def test_bytes_are_those_of_the_arrays_of_a_capture(family: str, mode: str, tmp_path: Path) -> None:
    folder, store = folder_of(tmp_path / "model", FAMILIES[family]()), tmp_path / "run.zarr"
    found = planned(folder, residuals=True, track=("a",), lens_points="all", output=store, attention=mode)
    sizes = {array.name: array for size in found.modes if size.mode == mode for array in size.arrays}
    capture(
        tiny_model(family), byte_tokenizer(), "The quick fox", store, raw=True, completion="abcdef",
        residuals=True, track=("a",), lens_points="all", attention=mode,
    )  # fmt: skip
    group: Any = zarr.open_group(store, mode="r")["0000"]
    arrays = dict(group.arrays())
    absent = set(group.attrs["attnlens"]["absent"])  # known only with the weights
    gone = {name for name in sizes if name not in arrays}
    assert all(any(name.startswith(why) for why in absent) for name in gone), gone
    assert set(arrays) - {"manifest_file", "manifest_sha256"} == set(sizes) - gone
    for name in set(sizes) - gone - TEXT_DECIDES:
        array = arrays[name]
        if sizes[name].raw_bytes is not None:
            assert sizes[name].raw_bytes == math.prod(array.shape) * array.dtype.itemsize, name
        assert tuple(sizes[name].axes.values()) == array.shape, name
    exact = sum(size.raw_bytes is not None for size in sizes.values())
    assert exact >= len(sizes) - 6


def test_weights_are_counted_as_they_would_be_loaded(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, FAMILIES["llama"]())
    model = tiny_model("llama")
    whole = sum(weight.numel() for weight in model.parameters())
    held = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert planned(folder).memory["host"]["weights"] == 4 * whole + held
    half = planned(folder, dtype="bfloat16").memory["host"]["weights"]
    assert 2 * whole <= half <= 2 * whole + held
    assert planned(folder).n_parameters == whole


def test_the_cache_is_that_of_a_run(tmp_path: Path) -> None:
    found = planned(folder_of(tmp_path, FAMILIES["llama"]()))
    with torch.no_grad():
        out = tiny_model("llama")(torch.ones(1, found.capacity, dtype=torch.int64), use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in out[CACHE].layers)
    assert found.memory["host"]["keys and values"] == kept


def test_live_bytes_are_those_of_tensors_that_exist() -> None:
    with LiveBytes() as live:
        one = torch.zeros(1000)
        two = one + 1
        del one
        three = two.view(10, 100)
        del two
        three += 1
        four = torch.zeros(500)
    assert live.most == 4 * 2000
    assert four.sum() == 0


def test_layouts_without_weights(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    with_shards = planned(tmp_path / "meta")
    for shard in (tmp_path / "meta").glob("consolidated.*"):
        shard.unlink()
    without = planned(tmp_path / "meta", dtype="float32")
    assert (without.n_layer, without.n_head, without.capacity) == (2, 4, with_shards.capacity)
    assert without.modes[0].raw_bytes == with_shards.modes[0].raw_bytes


REFUSED: dict[str, tuple[Any, str]] = {
    "compressed keys": (lambda: t.DeepseekV4Config(num_hidden_layers=3), "heavily_compressed_attention"),
    "no attention": (lambda: t.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2), "attention functions"),
    "encoder-decoder": (lambda: t.T5Config(vocab_size=300, d_model=32, num_layers=1), "encoder"),
    "two attentions": (
        lambda: t.LongcatFlashConfig(
            vocab_size=300, hidden_size=32, num_layers=2, num_attention_heads=4, ffn_hidden_size=48, head_dim=4,
            kv_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=6,
            moe_topk=2, n_routed_experts=4, zero_expert_num=2, expert_ffn_hidden_size=16,
        ),
        "more than once",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_would_refuse(name: str, tmp_path: Path) -> None:
    config, words = REFUSED[name]
    with pytest.raises(AttnlensError, match=words):
        planned(folder_of(tmp_path, config()))


def test_inputs_that_a_capture_would_refuse(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", FAMILIES["gpt2"]())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("x")
    for options, words in (
        ({"prompt": "x" * 200}, "context holds 128"),
        ({"output": tmp_path / "there"}, "there"),
        ({"top_k": 0}, "top_k"),
        ({"dtype": "float8"}, "dtype"),
        ({"track": ("no such token at all",)}, "token"),
    ):
        with pytest.raises(AttnlensError, match=words):
            planned(folder, **options)


def test_share_of_the_cells_that_a_query_sees() -> None:
    def layer(index: int, **more: Any) -> LayerInfo:
        plain = {"index": index, "path": "l", "kind": "full", "n_head": 4, "n_kv_head": 4}
        return LayerInfo(**{**plain, **more}, key_features=8, value_features=8)

    full, sliding = layer(0), layer(1, kind="sliding", window=3)
    chunked = layer(1, kind="chunked", window=4)
    assert visible_share([full], 10) == 55 / 100
    assert visible_share([full, sliding], 10) == (55 + 27) / 200
    assert visible_share([chunked], 10) == (10 + 10 + 3) / 100
    assert visible_share([full, layer(1, kind="none", n_head=0)], 10) == 55 / 200


def test_page_and_json(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, FAMILIES["mistral"]())
    arguments = [
        "plan",
        "-m",
        str(folder),
        "-p",
        "Hello",
        "--raw",
        "-n",
        "20",
        "--quiet",
        "-o",
        str(tmp_path / "x.zarr"),
    ]
    page = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert page.exit_code == 0, page.output
    assert max(map(len, page.output.splitlines())) <= 80
    assert "attention qk" in page.output
    assert not (tmp_path / "x.zarr").exists()
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert told["capacity"] == 26
    assert [mode["mode"] for mode in told["modes"]] == ["dense", "qk"]
    assert told["peak"]["host"] == sum(told["memory"]["host"].values())


def test_activations_do_not_grow_with_the_layers() -> None:
    def beside_the_cache(layers: int) -> int:
        config = t.LlamaConfig(vocab_size=300, hidden_size=64, num_attention_heads=4, num_hidden_layers=layers)
        seen = sketch(config, torch.float32, 200)
        return seen.live_bytes - seen.cache_bytes

    assert beside_the_cache(12) - beside_the_cache(3) < 200 * 64 * 4  # less than one residual, of nine more layers


def test_a_checkpoint_of_another_dtype_is_beside_the_weights_made_of_it(tmp_path: Path) -> None:
    large = t.LlamaConfig(vocab_size=300, hidden_size=2048, intermediate_size=8192, num_hidden_layers=8)
    folder = folder_of(tmp_path, large)
    same, other = planned(folder, dtype="float32").memory["host"], planned(folder, dtype="bfloat16")
    host = other.memory["host"]
    assert not any("loaded" in name for name in same)
    read = sum(host.values()) - host["Python and libraries"] - host["weights"]
    assert read == pytest.approx(4 * other.n_parameters, rel=1e-4)  # the file's, in float32
