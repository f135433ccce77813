"""Numbers, lists, masks and slices mean to readers in Python what numpy means; nothing is read in silence."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import zarr

import attnlens
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.reader import Capture
from attnlens.store.tools.crop import crop
from attnlens.store.tools.keep import Keep
from store_sample import Sample

N_LAYER, N_HEAD, N_PROMPT, N_TOKEN = 6, 4, 9, 14
NONE = 2
"""The layer that has no attention."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "run.zarr"
    sample = Sample(n_prompt=N_PROMPT, n_generated=5, n_layer=N_LAYER, n_head=N_HEAD, none_layers=(NONE,))
    sample.write(path)
    return path


@pytest.fixture(scope="module")
def cropped(whole: Path) -> Path:
    path = whole.with_name("part.zarr")
    crop(whole, path, keep=Keep(layers="0:4", heads="1,3", tokens="3:12"))
    return path


@pytest.fixture
def capture(whole: Path) -> Capture:
    return attnlens.open(whole)[0]


@pytest.fixture
def part(cropped: Path) -> Capture:
    return attnlens.open(cropped)[0]


def plain(path: Path, name: str) -> Any:
    """All cells, by zarr alone."""
    group: Any = zarr.open_group(path, mode="r")["0000"]
    return group[name][...]


GOOD: list[tuple[Any, list[int]]] = [
    (3, [3]),
    (-1, [5]),
    (np.int64(4), [4]),
    (np.uint8(1), [1]),
    (np.asarray(1), [1]),
    ([0, -1], [0, 5]),
    ((3, 0), [3, 0]),
    ([3, 3], [3, 3]),
    (np.asarray([4, -6], np.int8), [4, 0]),
    (range(3, 6), [3, 4, 5]),
    (range(5, 2, -1), [5, 4, 3]),
    (slice(3, None), [3, 4, 5]),
    (slice(-3, 99), [3, 4, 5]),
    (slice(None, None, -5), [5, 0]),
    ([True, False, False, True, False, True], [0, 3, 5]),
    ("3,5", [3, 5]),
    ("3-5", [3, 4, 5]),
    ("-1", [5]),
    ("3:", [3, 4, 5]),
]
NONSENSE: list[tuple[Any, str]] = [
    (6, "layer 6 is outside 0 … 5"),
    (-7, "layer -7 is outside 0 … 5"),
    ([0, 6], "layer 6 is outside 0 … 5"),
    (2**70, "is no position"),
    (1.0, "is no position"),
    ([1.0], "is no position"),
    (np.nan, "is no position"),
    (True, "is no position"),
    (np.True_, "is no position"),
    ([True], "the mask along layer has 1 flags, expected 6"),
    ([[0, 1]], "is no position"),
    ([0, [1]], "is no position"),
    ({0, 1}, "is no position"),
    ([None], "is no position"),
    (slice(0.5, 2), "is no position"),
    (b"3", "is no position"),
    ("6", "6 is out of range: there are 6 layers"),
    ("x", "'x' is not understood"),
    ("4:4", "selects no layer"),
]
READ: dict[str, Callable[[Capture, Any], Any]] = {
    "rows": lambda capture, layers: capture.attention.rows([7], layers=layers),
    "rounded": lambda capture, layers: capture.attention.rounded([7], layers=layers),
    "stored reduction": lambda capture, layers: capture.attention.reduced("max", [9], layers=layers),
    "new reduction": lambda capture, layers: capture.attention.reduced("mean", [5, 9], layers=layers),
    "index": lambda capture, layers: capture["attention_weight"][layers],
    "isel": lambda capture, layers: capture["attention_weight"].isel(layer=layers),
}


@pytest.mark.parametrize(("layers", "expected"), GOOD, ids=repr)
def test_layers_mean_what_numpy_means(capture: Capture, whole: Path, layers: Any, expected: list[int]) -> None:
    weight = plain(whole, "attention_weight")[expected].astype(np.float32)
    reduced = plain(whole, "attention_max")[9 - N_PROMPT + 1, expected].astype(np.float32)
    one = isinstance(layers, int | np.integer) or (isinstance(layers, np.ndarray) and layers.ndim == 0)
    np.testing.assert_array_equal(READ["rows"](capture, layers), weight[:, :, [7]])
    np.testing.assert_array_equal(READ["rounded"](capture, layers), weight[:, :, [7]])
    np.testing.assert_array_equal(READ["stored reduction"](capture, layers), reduced[:, None])
    mean = weight[:, :, [5, 9]].mean(axis=1)
    np.testing.assert_allclose(READ["new reduction"](capture, layers), mean, atol=6e-4)
    for name in ("isel",) if isinstance(layers, tuple) else ("index", "isel"):
        np.testing.assert_array_equal(READ[name](capture, layers), weight[0] if one else weight)


@pytest.mark.parametrize("name", READ)
def test_what_is_no_layer_is_refused_by_every_method(capture: Capture, name: str) -> None:
    for layers, message in NONSENSE:
        with pytest.raises(InputError) as error:
            READ[name](capture, layers)
        assert message in str(error.value), layers


@pytest.mark.parametrize("layers", [[], (), slice(3, 3), np.zeros(0, int)], ids=repr)
def test_no_layer_is_no_answer_of_attention(capture: Capture, layers: Any) -> None:
    for name in ("rows", "rounded", "stored reduction", "new reduction"):
        with pytest.raises(InputError, match="no layer was named"):
            READ[name](capture, layers)


def test_heads_queries_and_keys_are_counted_like_layers(capture: Capture, whole: Path) -> None:
    weight = plain(whole, "attention_weight").astype(np.float32)
    rows = capture.attention.rows
    np.testing.assert_array_equal(rows([-3, 2, 2], heads=[-1, 0]), weight[:, [3, 0]][:, :, [11, 2, 2]])
    np.testing.assert_array_equal(rows("-3", heads="1-3"), weight[:, 1:4, 11:12])
    np.testing.assert_array_equal(rows(slice(-4, -1)), weight[:, :, 10:13])
    np.testing.assert_array_equal(rows(np.arange(N_TOKEN) == 4), weight[:, :, 4:5])
    for asked, message in (({"heads": 4}, "head 4 is outside 0 … 3"), ({"heads": 0.5}, "0.5 along head is no")):
        with pytest.raises(InputError, match=message):
            rows(3, **asked)
    odd: list[Any] = [14, -15, 2.0, True, object, [3, "x"]]
    for queries in odd:
        with pytest.raises(InputError, match=r"along query is no position|query -?[0-9]+ is outside"):
            rows(queries)
    with pytest.raises(AbsentError, match="token 13 was not fed"):
        rows(-1)
    with pytest.raises(AbsentError, match="token 13 was not fed"):
        capture.attention.reduced("max", [-1])


def test_depths_tokens_and_ranks_of_readings_are_counted_like_layers(capture: Capture, whole: Path) -> None:
    lens, cells = capture["lens_probability"], plain(whole, "lens_probability")
    np.testing.assert_array_equal(lens[-1, -3, -1], cells[-1, -3, -1])
    np.testing.assert_array_equal(lens.isel(depth=[-1, 0], token="2,4-6", rank=0), cells[[-1, 0]][:, [2, 4, 5, 6], 0])
    np.testing.assert_array_equal(lens[::-2, 5:1:-1], cells[::-2, 5:1:-1])
    np.testing.assert_array_equal(lens.sel(depth=6), cells[6])
    np.testing.assert_array_equal(lens[None, :, 3, np.newaxis, ..., 0, None], cells[None, :, 3, None, 0, None])
    for index in ((7,), (0.0,), (True,), (0, 0, 0, 0), (..., ...)):
        with pytest.raises(InputError):
            lens[index]
    with pytest.raises(InputError, match="None along depth is no position"):
        lens.isel(depth=None)  # type: ignore[arg-type]
    odd: list[Any] = [-1, 7, 0.5, "3", True, None]
    for label in odd:
        with pytest.raises(InputError):
            lens.sel(depth=label)
    assert capture.token_bytes(np.int64(-1)) == capture.token_bytes(N_TOKEN - 1) != b""
    for token in (N_TOKEN, -N_TOKEN - 1, 1.0, True, [1], slice(2), "1", None):
        with pytest.raises(InputError):
            capture.token_bytes(token)  # type: ignore[arg-type]


def test_a_number_that_was_cropped_away_is_refused_by_name(part: Capture) -> None:
    rows = part.attention.rows
    for layers in (-1, [-1], [0, 4], "4", slice(None), None, range(6)):
        with pytest.raises(AbsentError, match=r"layer [45] was cropped away; there are 0, 1, 2, 3"):
            rows(7, layers=layers, heads=[1])
        with pytest.raises(AbsentError, match=r"layer [45] was cropped away; there are 0, 1, 2, 3"):
            part.attention.reduced("max", 9, layers=layers)
    for heads in (0, [-2], None, [True] * 4):
        with pytest.raises(AbsentError, match=r"head [02] was cropped away; there are 1, 3"):
            rows(7, layers=[0], heads=heads)
    with pytest.raises(AbsentError, match="head 0 was cropped away"):  # a reduction of all heads
        part.attention.reduced("max", 5, layers=[0])
    for query in (2, -2, [5, 12], "2"):
        with pytest.raises(AbsentError, match=r"of token (2|12) was cropped away"):
            rows(query, layers=[0], heads=[1])
        with pytest.raises(AbsentError, match=r"of token (2|12) was cropped away"):
            part["next_rank"].isel(token=query)
    for index in ((-1,), (0, 0), (0, 1, 5, 2)):
        with pytest.raises(AbsentError, match="was cropped away"):
            part["attention_weight"][index]
    with pytest.raises(AbsentError, match="depth 5 was cropped away; there are 0, 1, 2, 3, 6"):
        part["next_rank"][5]
    assert part.token_bytes(2) == b"" != part.token_bytes(3)


def test_a_layer_without_attention_is_refused_by_number_and_nan_in_a_slice(capture: Capture, part: Capture) -> None:
    for found in (capture, part):
        for layers in (NONE, [0, NONE], NONE - N_LAYER, str(NONE)):
            for read in (READ["stored reduction"], lambda c, layers: c.attention.rows([7], layers, [1])):
                with pytest.raises(AbsentError, match="layer 2 has no attention; layers with attention: 0, 1, 3, 4, 5"):
                    read(found, layers)
        mask = [True, False, True, False, False, False]
        for inside in (slice(0, 3, 2), mask, np.asarray(mask)):
            row = found.attention.rows([7], inside, [1])
            assert not np.isnan(row[0, 0, 0, 3:12]).any()
            assert np.isnan(row[1]).all()


def test_arrays_of_a_capture_behave_like_arrays(capture: Capture, whole: Path) -> None:
    for name in ("next_rank", "lens_probability", "attention_weight", "token_id", "token_special", "depth"):
        array, cells = capture[name], plain(whole, name)
        found = np.asarray(array)
        assert (array.shape, array.ndim, array.size, array.dtype, array.nbytes, len(array)) == (
            cells.shape, cells.ndim, cells.size, cells.dtype, cells.nbytes, len(cells))  # fmt: skip
        assert found.dtype == cells.dtype
        np.testing.assert_array_equal(found, cells)
        np.testing.assert_array_equal(np.stack(list(array)), cells)
        np.testing.assert_array_equal(array[...], cells)
        np.testing.assert_array_equal(array[1:-1:2, ...], cells[1:-1:2])
        np.testing.assert_array_equal(array[::-1], cells[::-1])
        np.testing.assert_array_equal(array[1], cells[1])
    ranks, cells = capture["next_rank"], plain(whole, "next_rank")
    assert np.array(ranks, np.float64).dtype == np.float64
    assert np.array(ranks, copy=True).flags.writeable
    with pytest.raises(ValueError, match="gets a copy"):
        np.array(ranks, copy=False)
    np.testing.assert_array_equal(ranks + 1, cells + 1)
    np.testing.assert_array_equal(ranks == 0, cells == 0)
    np.testing.assert_array_equal(np.abs(ranks), np.abs(cells))
    np.testing.assert_array_equal(np.concatenate([ranks, ranks]), np.concatenate([cells, cells]))
    assert (ranks[0, 0].shape, int(ranks[0, 0]), float(ranks.isel(depth=0, token=0))) == ((), cells[0, 0], cells[0, 0])
    assert np.mean(ranks) == cells.mean()
    assert (
        [str(text) for text in capture["token_text"]]
        == capture.token_text
        == np.asarray(capture["token_text"]).tolist()
    )


def test_pandas_xarray_and_matplotlib_take_them_without_a_warning(capture: Capture, whole: Path) -> None:
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ranks, cells = capture["next_rank"], plain(whole, "next_rank")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pandas.DataFrame(ranks).to_numpy(), cells)
        np.testing.assert_array_equal(pandas.Series(capture["token_id"]).to_numpy(), plain(whole, "token_id"))
        np.testing.assert_array_equal(xarray.DataArray(ranks, dims=ranks.axes).sel(token=3), cells[:, 3])
        figure, axes = pyplot.subplots(2)
        np.testing.assert_array_equal(axes[0].imshow(ranks).get_array(), cells)
        (line,) = axes[1].plot(capture["token"], capture["model_probability"])
        np.testing.assert_array_equal(line.get_ydata(), plain(whole, "model_probability"))
        figure.savefig(io.BytesIO())
        pyplot.close(figure)
