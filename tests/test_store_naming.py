"""What a capture's model is called: wherever it is named, what changed the model, or its label, is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import attnlens
from attnlens import cli
from attnlens.info_page import print_page
from attnlens.render.diff.diff import diff
from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.render.recipes.again import draw_again, recipe_in
from attnlens.render.views.query_view import QueryView
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.metadata import CaptureMetadata
from attnlens.store.info import describe
from attnlens.store.naming import model_name, tell_apart, told
from attnlens.store.tools.crop import crop
from attnlens.store.tools.inif import export_inif
from attnlens.store.tools.keep import Keep
from attnlens.store.tools.merge import merge
from attnlens.store.tools.pack import pack
from attnlens.store.tools.parquet import export_parquet
from attnlens.store.tools.seal import seal
from attnlens.store.verify import verify
from render_store import make

POET = {"name": "poet", "type": "LORA", "rank": 8, "scaling": 2.0, "targets": ["q_proj", "v_proj"], "digest": "a" * 64}
HOOK = {"module": "layers.1.mlp", "kind": "forward", "function": "mine.ablate"}
JAVASCRIPT = Path(attnlens.__file__).parent / "render" / "js" / "data" / "naming.js"


def store(path: Path, *, model: dict[str, Any] | None = None, **about: Any) -> Path:
    """A made-up capture whose metadata say more than the usual."""
    make(path)
    place = path / "0000" / "zarr.json"
    document = json.loads(place.read_text())
    ours = document["attributes"]["attnlens"]
    ours.update(about)
    ours["model"].update(model or {})
    place.write_text(json.dumps(document))
    seal(path, "0000")
    return path


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Metadata of a capture whose model nothing changed."""
    path = tmp_path_factory.mktemp("record") / "run.zarr"
    make(path)
    found: dict[str, Any] = json.loads((path / "0000" / "zarr.json").read_text())["attributes"]["attnlens"]
    return found


def about(record: dict[str, Any], label: str | None = None, **model: Any) -> CaptureMetadata:
    return CaptureMetadata.model_validate({**record, "label": label, "model": {**record["model"], **model}})


NAMED: list[tuple[str | None, dict[str, Any], str]] = [
    (None, {}, "made/up"),
    ("head 3 off", {}, "made/up (head 3 off)"),
    ("head 3 off", {"adapters": [POET], "hooks": [HOOK]}, "made/up (head 3 off)"),
    (None, {"adapters": [POET]}, "made/up + adapter poet"),
    (None, {"adapters": [{**POET, "active": False}]}, "made/up"),
    (None, {"adapters": [{**POET, "active": False, "merged": True}]}, "made/up + adapter poet"),
    (None, {"adapters": [{**POET, "name": name} for name in "ab"]}, "made/up + adapters a, b"),
    (None, {"adapters": [{**POET, "name": name} for name in "abcde"]}, "made/up + adapters a, b, c and 2 more"),
    (None, {"hooks": [HOOK]}, "made/up, hooked"),
    (None, {"adapters": [POET], "hooks": [HOOK]}, "made/up + adapter poet, hooked"),
    ("  \n ", {"hooks": [HOOK]}, "made/up, hooked"),
    ("a\x1b[31m\nb\u202ec\ud800", {}, "made/up (a\\x1b[31m b\\u202ec\\ud800)"),
    ("\U000e0001 é 今日 🙂", {}, "made/up (\\U000e0001 é 今日 🙂)"),
    ("🙂" * 300, {}, f"made/up ({'🙂' * 199}…)"),
    (None, {"adapters": [{**POET, "name": "x" * 100_000}]}, f"made/up + adapter {'x' * 39}…"),
]


@pytest.mark.parametrize(("label", "model", "expected"), NAMED)
def test_a_name_says_the_label_or_else_what_changed_the_model(
    record: dict[str, Any], label: str | None, model: dict[str, Any], expected: str
) -> None:
    assert model_name(about(record, label, **model)) == expected


def test_the_viewer_says_the_same_names() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    asked = [{"label": label, "model": {"id": "made/up", **model}} for label, model, _ in NAMED]
    script = f"import {{ modelName }} from {json.dumps(JAVASCRIPT.as_uri())};\nimport {{ readFileSync }} from 'fs';\n"
    script += "console.log(JSON.stringify(JSON.parse(readFileSync(0)).map(modelName)));"
    command = [node, "--input-type=module", "-e", script]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [expected for _, _, expected in NAMED]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((None, {}), (None, {"hooks": [HOOK]}), ("made/up", "made/up, hooked")),
        (("x", {}), ("x", {"hooks": [HOOK]}), ("made/up (x)", "made/up (x), hooked")),
        (
            (None, {"adapters": [POET]}),
            (None, {"adapters": [{**POET, "digest": "b" * 64}]}),
            (
                "made/up + adapter poet [poet: LORA, rank 8, scaling 2, on q_proj, v_proj; sha256 aaaaaaaaaaaa]",
                "made/up + adapter poet [poet: LORA, rank 8, scaling 2, on q_proj, v_proj; sha256 bbbbbbbbbbbb]",
            ),
        ),
        (
            (None, {"hooks": [HOOK]}),
            (None, {"hooks": [HOOK, {**HOOK, "module": ""}]}),
            ("made/up, hooked", "made/up, hooked [forward on the whole model: mine.ablate]"),
        ),
        ((None, {"revision": "1234567890abcdef"}), (None, {}), ("made/up at 1234567890ab", "made/up")),
        ((None, {"hooks": [HOOK]}), (None, {"hooks": [HOOK]}), ("made/up, hooked", "made/up, hooked")),
    ],
)
def test_two_names_are_told_apart_by_what_differs(
    record: dict[str, Any], a: Any, b: Any, expected: tuple[str, str]
) -> None:
    one, two = about(record, a[0], **a[1]), about(record, b[0], **b[1])
    assert tell_apart(one, two) == expected
    assert tell_apart(two, one) == expected[::-1]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *command: object) -> str:
    monkeypatch.setattr(sys, "argv", ["lens", *map(str, command)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    return capsys.readouterr().out


FULL: dict[str, Any] = {
    "label": "poet at half strength",
    "notes": ["the context goes on beyond 2048 tokens"],
    "seam": "whole",
    "continued": True,
    "tools": [{"type": "function", "function": {"name": "weather"}}, {"name": "clock"}, {"function": "odd"}],
    "model": {
        "tokenizer": "some/tokenizer",
        "adapters": [POET, {**POET, "name": "idle", "active": False}],
        "hooks": [HOOK, {**HOOK, "module": "layers.*.mlp", "count": 40}, {**HOOK, "module": "*"}],
        "left_out": [{"tensors": "visual.blocks.*", "count": 312, "reason": "a tower that text never enters"}],
    },
}


def test_the_page_of_a_store_tells_what_is_special_in_80_columns(tmp_path: Path) -> None:
    path = store(tmp_path / "run.zarr", **FULL)
    place = path / "0000" / "zarr.json"
    document = json.loads(place.read_text())
    document["attributes"]["attnlens"]["sampling"]["overrides"] = {"top_k": 50, "num_beams": None}
    place.write_text(json.dumps(document))
    seal(path, "0000")
    lines = shown(path)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for expected in (
        "label poet at half strength",
        "tokenizer some/tokenizer",
        "adapter poet: LORA, rank 8, scaling 2, on q_proj, v_proj; sha256 aaaaaaaaaaaa",
        "adapter idle: LORA, rank 8, scaling 2, on q_proj, v_proj; inactive; sha256 aaaaaaaaaaaa",
        "hook forward on layers.1.mlp: mine.ablate",
        "hook forward on layers.*.mlp (40 modules): mine.ablate",
        "hook forward on every module: mine.ablate",
        "not used visual.blocks.* (312 tensors): a tower that text never enters",
        "its last message is continued, not answered",
        "tools 3: weather, clock, ?",
        "seam whole: the tokens of the whole text, some across the seam",
        "settings top_k 50, num_beams unset",
        "note the context goes on beyond 2048 tokens",
    ):
        assert expected in text, expected
    found = describe(path).captures[0]
    assert found.name == "made/up (poet at half strength)"
    assert (found.label, found.seam, found.continued) == ("poet at half strength", "whole", True)
    assert (found.tools, found.notes) == (FULL["tools"], FULL["notes"])
    assert found.model["hooks"][1]["count"] == 40


def shown(path: Path) -> list[str]:
    console = Console(width=80, highlight=False, markup=False)
    with console.capture() as page:
        print_page(describe(path), console)
    return page.get().splitlines()


def test_a_page_of_a_plain_capture_has_no_line_more(tmp_path: Path) -> None:
    make(tmp_path / "run.zarr")
    names = {line[2:13].strip() for line in shown(tmp_path / "run.zarr") if line.startswith("  ")}
    assert not names & {"label", "tokenizer", "adapter", "hook", "not used", "tools", "seam", "settings", "note"}
    assert told(attnlens.open(tmp_path / "run.zarr")[0].metadata) == {}


def test_a_list_of_captures_marks_what_is_not_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, hooked = tmp_path / "plain.zarr", store(tmp_path / "hooked.zarr", model={"hooks": [HOOK]})
    labelled = store(tmp_path / "labelled.zarr", label="a label that is longer than the column")
    make(plain)
    assert run(monkeypatch, capsys, "ls", plain).split() == ["0000", "complete", "6+5", "made/up", "made", "up"]
    merge([plain, hooked, labelled], tmp_path / "all.zarr")
    lines = run(monkeypatch, capsys, "ls", tmp_path / "all.zarr").splitlines()
    assert max(map(len, lines)) <= 81
    assert [line[47:71].strip() for line in lines[1:]] == ["hooked", "a label that is long …"]
    listed = json.loads(run(monkeypatch, capsys, "ls", tmp_path / "all.zarr", "--json"))["captures"]
    assert [(one["model"], one["label"], one["changes"]) for one in listed] == [
        ("made/up", None, ""),
        ("made/up", None, ", hooked"),
        ("made/up", "a label that is longer than the column", ""),
    ]


def recipe_of(picture: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(recipe_in(picture.read_bytes(), picture.name))
    return found


def test_pictures_name_it_and_are_drawn_again(tmp_path: Path) -> None:
    path = store(tmp_path / "run.zarr", label="<b>half</b>", model={"adapters": [POET], "hooks": [HOOK]})
    render(path, tmp_path / "out", options=RenderOptions(dpi=40, format="svg"), gallery=True)
    name = "made/up (&lt;b&gt;half&lt;/b&gt;)"
    assert f"<h1>{name} · capture 0000</h1>" in (tmp_path / "out" / "index.html").read_text()
    picture = tmp_path / "out" / "attn_0.svg"
    assert name in picture.read_text()
    render(path, tmp_path / "png", options=RenderOptions(dpi=40))
    recipe = recipe_of(tmp_path / "png" / "attn_0.png")
    assert recipe["model"] == "made/up"
    assert recipe["label"] == "<b>half</b>"
    assert recipe["adapters"] == ["poet: LORA, rank 8, scaling 2, on q_proj, v_proj; sha256 aaaaaaaaaaaa"]
    assert recipe["hooks"] == ["forward on layers.1.mlp: mine.ablate"]
    for drawn in (picture, tmp_path / "png" / "attn_0.png"):
        report = draw_again(drawn, path, tmp_path / "again")
        assert report.same
        assert report.path.read_bytes() == drawn.read_bytes()


def test_a_recipe_of_a_plain_capture_is_what_it_was(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr")
    recipe = next(iter(QueryView(attnlens.open(made.path)[0], RenderOptions()).scenes(6)))[1].recipe
    assert not {"label", "adapters", "hooks"} & set(recipe)


def test_a_diff_names_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "one" / "run.zarr", tmp_path / "two" / "run.zarr"
    make(a)
    store(b, label="head 2 of layer 1 off", model={"hooks": [HOOK]})
    output = run(monkeypatch, capsys, "diff", a, b, "-o", tmp_path / "out", "--dpi", "40", "--format", "svg", "-q")
    told_by = " ".join(output.split("depth")[0].split())
    assert told_by == f"A: {a}#0000, made/up B: {b}#0000, made/up (head 2 of layer 1 off)"
    picture = next((tmp_path / "out").glob("diff_*.svg")).read_text()
    assert "A: made/up (float32), capture 0000" in picture
    assert "B: made/up (head 2 of layer 1 off), float32, capture 0000" in picture
    report = diff(a, b, tmp_path / "more", options=RenderOptions(dpi=40, format="svg"))
    assert (report.model_a, report.model_b) == ("made/up", "made/up (head 2 of layer 1 off)")
    assert report.a != report.b


def test_what_is_told_goes_with_crops_packs_and_exports(tmp_path: Path) -> None:
    path = store(tmp_path / "run.zarr", **FULL)
    crop(path, tmp_path / "crop.zarr", keep=Keep(layers="0:2"))
    pack(path, tmp_path / "run.zarr.zip")
    for copy in ("crop.zarr", "run.zarr.zip"):
        found = attnlens.open(tmp_path / copy)[0].metadata
        assert (found.label, found.tools, found.model.adapters[0].name) == (FULL["label"], FULL["tools"], "poet")
    crop(path, tmp_path / "short.zarr", keep=Keep(tokens="2:9"))
    assert attnlens.open(tmp_path / "short.zarr")[0].metadata.tools is None  # they are part of the text that is gone
    export_inif(path, tmp_path / "run.inif.json")
    document = json.loads((tmp_path / "run.inif.json").read_text())
    assert document["metadata"]["model"]["name"] == "made/up (poet at half strength)"
    assert document["metadata"]["model"]["loading_config"]["hooks"][0] == "forward on layers.1.mlp: mine.ablate"
    pyarrow = pytest.importorskip("pyarrow.parquet")
    export_parquet(path, tmp_path / "run.parquet")
    stored = json.loads(pyarrow.read_schema(tmp_path / "run.parquet").metadata[b"attnlens"])["captures"]["0000"]
    assert (stored["label"], stored["model"]["adapters"][0]["digest"]) == (FULL["label"], "a" * 64)


def test_a_dataset_tells_it_as_text(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    attributes = attnlens.open(store(tmp_path / "run.zarr", **FULL))[0].to_xarray().attrs
    assert attributes["label"] == FULL["label"]
    assert attributes["hooks"].split("; ")[0] == "forward on layers.1.mlp: mine.ablate"
    make(tmp_path / "plain.zarr")
    assert not {"label", "adapters", "hooks"} & set(attnlens.open(tmp_path / "plain.zarr")[0].to_xarray().attrs)


def test_an_inif_document_is_of_one_model_changed_in_one_way(tmp_path: Path) -> None:
    pytest.importorskip("inif")
    parts = [store(tmp_path / f"{digit}.zarr", model={"adapters": [{**POET, "digest": digit * 64}]}) for digit in "ab"]
    merge(parts, tmp_path / "both.zarr")
    with pytest.raises(InputError, match=r"of one model, and these are made/up \+ adapter poet; choose with --capture"):
        export_inif(tmp_path / "both.zarr", tmp_path / "both.inif.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "x" * 201}, "label has 201 characters, expected at most 200"),
        ({"label": ["x"]}, "label: Input should be a valid string"),
        ({"seam": "torn"}, "seam: Input should be 'clean', 'prompt' or 'whole'"),
        ({"model": {"adapters": [{**POET, "digest": "../x"}]}}, "digest of 'poet' is '../x', no sha256"),
        ({"model": {"adapters": [{**POET, "scaling": "much"}]}}, "model.adapters.0.scaling"),
        ({"model": {"hooks": [{**HOOK, "count": 0}]}}, "model.hooks.0.count"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = store(tmp_path / "run.zarr")
    place = path / "0000" / "zarr.json"
    document = json.loads(place.read_text())
    ours = document["attributes"]["attnlens"]
    ours["model"].update(change.get("model", {}))
    ours.update({name: value for name, value in change.items() if name != "model"})
    place.write_text(json.dumps(document))
    with pytest.raises(StoreError) as refusal:
        attnlens.open(path)[0]
    assert words in str(refusal.value)
    assert any(words in problem.message for problem in verify(path).problems)


def test_texts_of_strangers_reach_no_terminal_and_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b[2J\r\n<script>\u202e"
    adapter = {**POET, "name": bad, "type": bad, "targets": [bad] * 500}
    hook = {"module": bad, "kind": bad, "function": bad * 100}
    model = {
        "adapters": [adapter] * 300,
        "hooks": [hook] * 300,
        "tokenizer": bad,
        "left_out": [{"tensors": bad, "count": 1, "reason": bad}] * 300,
    }
    tools = [{"function": {"name": bad}}] * 300
    path = store(tmp_path / "run.zarr", label=bad, notes=[bad] * 300, tools=tools, model=model)
    make(tmp_path / "plain.zarr")
    out = [run(monkeypatch, capsys, command, path) for command in ("info", "ls")]
    out.append(
        run(
            monkeypatch,
            capsys,
            "diff",
            path,
            tmp_path / "plain.zarr",
            "-o",
            tmp_path / "d",
            "--dpi",
            "30",
            "--queries",
            "6",
        )
    )
    for text in out:
        assert not {"\x1b", "\r", "\u202e"} & set(text)
        assert len(text.splitlines()) < 400
    render(path, tmp_path / "out", options=RenderOptions(dpi=30, queries="6"), gallery=True)
    assert "<script>\u202e" not in (tmp_path / "out" / "index.html").read_text()
    assert len(json.dumps(recipe_of(next((tmp_path / "out").glob("*.png"))))) < 20_000
