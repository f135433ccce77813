"""`lens diff`: alignment, bounds, pictures and numbers, each by other means."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import attnlens
from attnlens import cli
from attnlens.render.diff.align import Pair, by_character, by_token, equal_runs
from attnlens.render.diff.comparison import Comparison
from attnlens.render.diff.diff import diff, find_capture, rounded_up
from attnlens.render.diff.divergence import jensen_shannon
from attnlens.render.diff.view import DiffView
from attnlens.render.look.caption import details, headline
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.render.recipes.again import draw_again, draw_diff_again
from attnlens.render.run import workers
from attnlens.render.scene import Scene
from attnlens.schemas.errors import AbsentError, AttnlensError, InputError
from render_store import Made, make

PIECES = ("<s>", " Alice", " is", " Bob", "'s", " sister", ".", " Al", "ice", " sis", "ter.", " Bob's", "-")
DIFF = RenderOptions(cmap="RdBu_r", dpi=30)


def compared(a: Made, b: Made, align: str = "auto") -> Comparison:
    return Comparison(attnlens.open(a.path)[0], attnlens.open(b.path)[0], align)


def scenes(a: Made, b: Made, **options: str | int) -> dict[str, Scene]:
    view = DiffView(compared(a, b), RenderOptions(**options))  # type: ignore[arg-type]
    found = {name: scene for unit in view.units for name, scene in view.scenes(unit)}
    assert list(found) == [name for unit in view.units for name in view.stems(unit)]
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    """Two captures of the same tokens whose numbers differ."""
    folder = tmp_path_factory.mktemp("two")
    kinds = {"forced": True, "without_attention": (1,)}
    return make(folder / "a.zarr", seed=1, **kinds), make(folder / "b.zarr", seed=2, **kinds)  # type: ignore[arg-type]


def strongest(made: Made, query: int) -> NDArray[np.float64]:
    """Maximum over heads (layer, key)."""
    return np.asarray(made.weights[:, :, query, : query + 1].astype(np.float64).max(1))


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_equal_runs_are_equal_in_order_and_hold_both_ends(a: list[int], b: list[int]) -> None:
    runs = equal_runs(a, b)
    assert all(a[i : i + n] == b[j : j + n] and n > 0 for i, j, n in runs)
    assert all(i + n <= k and j + n <= m for (i, j, n), (k, m, _) in itertools.pairwise(runs))
    if a == b and a:
        assert runs == [(0, 0, len(a))]
    if a and b and a[0] == b[0]:
        assert runs[0][:2] == (0, 0)


@given(st.lists(st.integers(-1, 3), max_size=12), st.lists(st.integers(-1, 3), max_size=12))
def test_tokens_are_paired_by_id_and_redacted_ones_never(a: list[int], b: list[int]) -> None:
    pairs = by_token(np.array(a, np.int32), np.array(b, np.int32))
    assert all(a[i] == b[j] >= 0 for pair in pairs for i, j in [pair.last])
    assert all(x.last[0] < y.last[0] and x.last[1] < y.last[1] for x, y in itertools.pairwise(pairs))


CUTS = st.lists(st.integers(0, 30), max_size=8)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[start:stop] for start, stop in itertools.pairwise(edges)]


@given(st.text("ab \n", min_size=1, max_size=30), CUTS, CUTS)
def test_the_same_text_is_cut_where_both_tokenizers_have_an_edge(text: str, here: list[int], there: list[int]) -> None:
    a, b = cut(text.encode(), here), cut(text.encode(), there)
    pairs = by_character(a, b)
    for pair in pairs:
        assert b"".join(a[place] for place in pair.a) == b"".join(b[place] for place in pair.b)
    edges = [set(np.cumsum([len(piece) for piece in pieces]).tolist()) for pieces in (a, b)]
    assert len(pairs) == len(edges[0] & edges[1])
    assert [place for pair in pairs for place in pair.a] == list(range(len(a)))
    assert [place for pair in pairs for place in pair.b] == list(range(len(b)))


def test_other_words_and_tokens_without_text_have_no_partner() -> None:
    a = [b"", b" Al", b"ice", b" and", b" Bob", b"", b"."]
    b = [b" Alice", b" or", b" B", b"ob", b"", b"", b"."]
    assert by_character(a, b) == (Pair((1, 2), (0,)), Pair((4,), (2, 3)), Pair((6,), (6,)))
    b = [b" Alice", b" or", b" B", b"ob."]
    assert by_character(a, b) == (Pair((1, 2), (0,)), Pair((4, 6), (2, 3)))


def distributions(count: int, size: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).dirichlet(np.full(size, 0.3), count)


@pytest.mark.parametrize(("kept", "seed"), [(1, 0), (5, 1), (12, 2), (30, 3)])
def test_bounds_hold_the_divergence_of_the_whole_vocabulary(kept: int, seed: int) -> None:
    p, q = distributions(40, 30, seed), distributions(40, 30, seed + 10)
    q[:20] = 0.9 * p[:20] + 0.1 * q[:20]
    m = (p + q) / 2
    exact = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2
    order_p, order_q = np.argsort(-p)[:, :kept].astype(np.int32), np.argsort(-q)[:, :kept].astype(np.int32)
    bounds = jensen_shannon(
        order_p, np.take_along_axis(p, order_p, 1).astype(np.float32), order_q,
        np.take_along_axis(q, order_q, 1).astype(np.float32),
    )  # fmt: skip
    assert (bounds.low <= exact + 1e-6).all()
    assert (bounds.high >= exact - 1e-6).all()
    assert (bounds.high <= np.log(2) + 1e-12).all()
    if kept == 30:
        np.testing.assert_allclose(bounds.low, exact, atol=1e-6)
        np.testing.assert_allclose(bounds.high, exact, atol=1e-6)


def test_nothing_in_common_says_as_much_as_is_known() -> None:
    ids, none = np.array([[1, 2]], np.int32), np.array([[3, -1]], np.int32)
    p, q = np.array([[0.6, 0.4]], np.float32), np.array([[1.0, np.nan]], np.float32)
    bounds = jensen_shannon(ids, p, none, q)
    assert (bounds.low[0], bounds.high[0]) == (0.0, np.log(2))  # one token of A may be B's, as far as sums tell


def test_the_same_tokens_compare_exactly(two: tuple[Made, Made]) -> None:
    a, b = two
    for name, scene in scenes(a, b, queries="all", window=6).items():
        assert name.startswith("diff_")
        assert scene.query is not None
        expected = strongest(b, scene.query) - strongest(a, scene.query)
        np.testing.assert_allclose(scene.matrix[:3], expected[:, list(scene.columns)], atol=1e-6)
        assert np.isnan(scene.matrix[1]).all()
        assert not scene.matrix[3].any()
        assert scene.scale == (-1.0, 1.0)
        assert not scene.column_labels


def test_lens_changes_are_marked_in_the_text(two: tuple[Made, Made]) -> None:
    a, b = two
    (scene,) = scenes(a, b, queries="10").values()
    both = [attnlens.open(made.path)[0] for made in two]
    changed = 0
    for depth in (1, 2, 3):
        for column in scene.columns:
            same = a.lens_token[depth, column, 0] == b.lens_token[depth, column, 0]
            assert (" → " in scene.labels[depth][column]) == (not same)
            changed += not same
    assert changed > 5
    assert not any(" → " in text for text in scene.labels[0])
    assert headline(scene).count("predicts") == 2
    assert details(scene)[0] == "A: made/up (float32), capture 0000"
    assert both[0].metadata.model.id in details(scene)[1]


def test_the_table_is_counted_over_the_same_tokens(two: tuple[Made, Made], tmp_path: Path) -> None:
    a, b = two
    report = diff(a.path, b.path, tmp_path, options=DIFF)
    assert (report.exact, report.align, report.aligned, report.count) == (True, "token", 11, 5)
    assert {path.name for path in tmp_path.iterdir()} == {f"diff_{number}.png" for number in range(5)}
    for row in report.depths:
        same = a.lens_token[row.a, :, 0] == b.lens_token[row.b, :, 0]
        assert row.agreement == pytest.approx(same.mean())
        assert row.count == 11
        assert row.js_low is not None
        assert row.js_high is not None
        assert 0 <= row.js_low <= row.js_high <= np.log(2)
    wide = [strongest(b, query) - strongest(a, query) for query in range(6, 11)]
    for layer in (0, 2):
        sizes = np.abs(np.concatenate([one[layer] for one in wide]))
        assert report.layers[layer].mean == pytest.approx(sizes.mean(), abs=1e-6)
        assert report.layers[layer].largest == pytest.approx(sizes.max(), abs=1e-6)
    assert report.layers[1].mean is None
    assert report.limit == rounded_up(max(row.largest or 0 for row in report.layers))


def test_a_capture_does_not_differ_from_itself(two: tuple[Made, Made], tmp_path: Path) -> None:
    report = diff(two[0].path, two[0].path, tmp_path, options=DIFF)
    assert {row.agreement for row in report.depths} == {1.0}
    assert {row.js_low for row in report.depths} == {0.0}
    assert {row.largest for row in report.layers} == {0.0, None}
    assert report.limit == 1


def test_diffs_are_the_same_bytes_each_time(two: tuple[Made, Made], tmp_path: Path) -> None:
    for name in ("one", "two"):
        diff(two[0].path, two[1].path, tmp_path / name, options=DIFF)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_across_tokenizers_attention_to_a_piece_is_the_sum_over_its_tokens(tmp_path: Path) -> None:
    words_b = tuple(reversed(PIECES))
    ids = [[0, 1, 2, 3, 4, 5, 6], [PIECES.index(p) for p in ("<s>", " Al", "ice", " is", " Bob's", " sis", "ter.")]]
    a = make(tmp_path / "a.zarr", n_prompt=3, n_generated=4, ids=ids[0], words=PIECES, forced=True)
    b = make(tmp_path / "b.zarr", n_prompt=3, n_generated=4, ids=[len(PIECES) - 1 - i for i in ids[1]],
             words=words_b, forced=True, n_layer=3)  # fmt: skip
    # "<s>" is word 0 of A only; in B it is text, and has no partner either way.
    both = compared(a, b)
    assert both.align == "character"
    assert [(pair.a, pair.b) for pair in both.drawn] == [((1,), (1, 2)), ((2,), (3,)), ((3, 4), (4,)), ((5, 6), (5, 6))]
    scene = scenes(a, b, heads="mean", queries="6")["diff_3"]
    ours, theirs = a.weights[:, :, 6].astype(np.float64), b.weights[:, :, 6].astype(np.float64)
    pieces = [(both.drawn[i].a, both.drawn[i].b) for i in range(4)]
    expected = [
        [theirs[layer][:, list(y)].sum(1).mean() - ours[layer][:, list(x)].sum(1).mean() for x, y in pieces]
        for layer in range(3)
    ]
    np.testing.assert_allclose(scene.matrix[:3], expected, atol=1e-6)
    assert scene.columns == (1, 2, 4, 6)
    assert scene.column_labels == ("B 1-2", "B 3", "B 4", "B 5-6")
    report = diff(a.path, b.path, tmp_path / "out", options=DIFF)
    assert {row.js_low for row in report.depths} == {None}
    assert not report.exact
    assert any("vocabularies differ" in note for note in report.notes)
    for row in report.depths:
        ends = [(x[-1], y[-1]) for x, y in pieces]
        same = [PIECES[a.lens_token[row.a, x, 0]] == words_b[b.lens_token[row.b, y, 0]] for x, y in ends]
        assert row.agreement == pytest.approx(np.mean(same))
    with pytest.raises(InputError, match="different vocabularies, use --align character"):
        compared(a, b, "token")


def test_other_numbers_of_layers_and_heads(tmp_path: Path) -> None:
    a = make(tmp_path / "a.zarr", n_layer=5, n_head=2, forced=True)
    b = make(tmp_path / "b.zarr", n_layer=3, n_head=4, forced=True)
    both = compared(a, b)
    assert [both.layer(layer) for layer in range(6)] == [0, 1, 1, 2, 2, 3]
    (scene,) = scenes(a, b, queries="10").values()
    assert scene.rows == (0, 1, 2, 3, 4, 5)
    assert scene.row_labels == ("B 0", "B 1", "B 1", "B 2", "B 2", "B 3")
    np.testing.assert_allclose(scene.matrix[3], strongest(b, 10)[2] - strongest(a, 10)[3], atol=1e-6)
    assert "attention, B - A: max over 2 heads in A, max over 4 heads in B" in details(scene)
    report = diff(a.path, b.path, tmp_path / "out", options=DIFF)
    assert len(report.notes) == 2
    with pytest.raises(InputError, match="there are 2 heads"):
        scenes(a, b, heads="3")
    with pytest.raises(InputError, match="2 and 4 heads, name some"):
        scenes(a, b, heads="each")


def test_other_prompts_are_aligned_by_their_common_tokens(tmp_path: Path) -> None:
    a = make(tmp_path / "a.zarr", ids=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    b = make(tmp_path / "b.zarr", ids=[0, 1, 12, 13, 3, 4, 5, 6, 7, 8, 9], seed=3)
    found = scenes(a, b, queries="all")
    assert list(found) == ["diff_p0", "diff_p1", "diff_p3", "diff_p4", "diff_p5", "diff_0", "diff_1", "diff_2"]
    last = found["diff_2"]
    assert last.columns == (0, 1, 3, 4, 5, 6, 7, 8)
    assert last.column_labels == tuple(f"B {position}" for position in (0, 1, 4, 5, 6, 7, 8, 9))
    expected = strongest(b, 9)[:, [0, 1, 4, 5, 6, 7, 8, 9]] - strongest(a, 8)[:, [0, 1, 3, 4, 5, 6, 7, 8]]
    np.testing.assert_allclose(last.matrix[:3], expected, atol=1e-6)


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    a = make(tmp_path / "a.zarr", ids=[1, 2, 3] * 3 + [1, 2])
    b = make(tmp_path / "b.zarr", ids=[4, 5, 6] * 3 + [4, 5])
    with pytest.raises(AbsentError, match=r"no token of capture 0000 belongs to one of capture 0000"):
        compared(a, b)


def test_without_a_lens_there_is_attention_only(two: tuple[Made, Made], tmp_path: Path) -> None:
    plain = make(tmp_path / "plain.zarr", lens=False, forced=True)
    report = diff(two[0].path, plain.path, tmp_path / "out", options=DIFF)
    assert report.depths == ()
    assert report.notes == ("lenses are not compared: B has none, the output head was not found",)
    (scene,) = scenes(two[0], plain, queries="10").values()
    assert {text for line in scene.labels[1:] for text in line} == {""}
    assert "no lens: B has none, the output head was not found" in details(scene)


@pytest.mark.parametrize(
    ("value", "limit"), [(0.0, 1), (1e-4, 1e-4), (0.0101, 0.02), (0.3, 0.5), (0.51, 1), (1.0, 1), (3.5, 5)]
)
def test_limits_are_round(value: float, limit: float) -> None:
    assert rounded_up(value) == limit


def test_captures_are_named_by_fragment_or_option(tmp_path: Path) -> None:
    path = make(tmp_path / "run.zarr").path
    make(path, append=True)
    assert find_capture(f"{path}#0001", None, "a")[1].id == "0001"
    assert find_capture(path, "0001", "a")[1].id == "0001"
    with pytest.raises(InputError, match=r"holds 2 captures \(0000, 0001\): name one, as in .*#0000"):
        find_capture(path, None, "a")
    with pytest.raises(InputError, match="names a capture and so does --capture-b 0000"):
        find_capture(f"{path}#0001", "0000", "b")
    with pytest.raises(AbsentError, match="has no capture '7'"):
        find_capture(f"{path}#7", None, "a")
    odd = make(tmp_path / "with#mark.zarr").path
    assert find_capture(odd, None, "a")[1].id == "0000"
    with pytest.raises(AttnlensError, match="no such store"):
        find_capture(tmp_path / "none.zarr#0000", None, "a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align": "word"}, "expected one of auto, token, character"),
        ({"limit": 0.0}, "--limit 0: expected a number above 0"),
        ({"limit": float("nan")}, "--limit nan"),
    ],
)
def test_what_cannot_be_used_is_told(
    two: tuple[Made, Made], tmp_path: Path, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        diff(two[0].path, two[1].path, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command_prints_a_table_and_json(
    two: tuple[Made, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: str) -> str:
        command = ["lens", "diff", str(two[0].path), f"{two[1].path}#0000", "-o", str(tmp_path / "out"), "--dpi", "30"]
        monkeypatch.setattr(sys, "argv", [*command, "--limit", "0.5", *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        return capsys.readouterr().out

    lines = run().splitlines()
    assert lines[0].split()[:3] == ["depth", "top-1", "agreement"]
    assert len(lines) == 6
    assert lines[-1].startswith("a.zarr#0000 and b.zarr#0000: the same tokens (11 and 11 tokens).")
    report = json.loads(run("--json"))
    assert (report["exact"], report["limit"], len(report["depths"]), len(report["layers"])) == (True, 0.5, 4, 3)
    assert set(report["depths"][0]) == {"a", "b", "count", "agreement", "js_low", "js_high"}


def test_worker_processes_make_the_same_bytes_and_resume_what_is_missing(
    two: tuple[Made, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WORTH", 1)
    stores, shown = (two[0].path, two[1].path), dataclasses.replace(DIFF, window=4, step=2)
    for n_workers in (1, 2):
        count = diff(*stores, tmp_path / str(n_workers), options=shown, n_workers=n_workers).count
    first = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    assert len(first) == count > 4
    again = tmp_path / "2"
    assert {path.name: path.read_bytes() for path in again.iterdir()} == first
    names = sorted(first)
    (again / names[0]).unlink()
    (again / names[1]).write_bytes(first[names[1]][:-9])
    report = diff(*stores, again, options=shown, resume=True)
    assert (report.count, report.kept) == (2, count - 2)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == first
    assert diff(*stores, again, options=shown, resume=True, limit=0.75).kept == 0


@pytest.mark.parametrize("name", ["png", "svg", "pdf"])
def test_a_diff_is_drawn_again_from_one_of_its_pictures(two: tuple[Made, Made], tmp_path: Path, name: str) -> None:
    stores = two[0].path, two[1].path
    diff(*stores, tmp_path / "first", options=dataclasses.replace(DIFF, format=name, heads="mean"))
    for picture in sorted((tmp_path / "first").iterdir())[:2]:
        report = draw_diff_again(picture, *stores, tmp_path / "again")
        assert report.same
        assert report.path.name == picture.name
        assert report.path.read_bytes() == picture.read_bytes()
        with pytest.raises(InputError, match="another store"):
            draw_diff_again(picture, stores[1], stores[0], tmp_path / "again")
        with pytest.raises(InputError, match="lens diff A B --from"):
            draw_again(picture, stores[0], tmp_path / "again")
    render(two[0].path, tmp_path / "one", options=dataclasses.replace(DIFF, cmap="coolwarm"))
    with pytest.raises(InputError, match="lens render STORE --from"):
        draw_diff_again(next((tmp_path / "one").glob("*.png")), *stores, tmp_path / "again")
