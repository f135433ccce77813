from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnlens.schemas.arrays import ARRAYS, wanted
from attnlens.schemas.problems import summary
from attnlens.schemas.validate import ArrayDescription, validate_capture, validate_store, version_problem

STORE: dict[str, Any] = {
    "attnlens": {"format": "attnlens", "version": 1, "created": "now", "writer": "attnlens 0", "planned": ["0000"]}
}
SIZES = {"token": 7, "query": 7, "key": 7, "layer": 2, "head": 3, "depth": 3, "generated": 4, "rank": 5,
         "entry": 11, "edge": 8, "byte": 20, "file": 9, "tracked": 2,
         "chunk": 5, "digest_byte": 32,
         "feature": 6, "kv_head": 1, "head_feature": 4}  # fmt: skip


def layer(index: int) -> dict[str, Any]:
    return {"index": index, "path": f"l.{index}", "kind": "full", "n_head": 3, "n_kv_head": 3, "key_features": 4,
            "value_features": 4}  # fmt: skip


def attributes(**changes: Any) -> dict[str, Any]:
    model = {"id": "m", "architecture": "A", "config": {}, "dtype": "float32", "n_layer": 2, "n_head": 3,
             "vocabulary_size": 50, "layers": [layer(0), layer(1)]}  # fmt: skip
    values: dict[str, Any] = {
        "id": "0000", "status": "complete", "committed": 6, "n_prompt": 4, "n_token": 7, "n_fed": 6, "prompt": "p",
        "attention": "dense", "model": model, "device": "cpu", "created": "now", "versions": {},
        "lens": {"name": "logit", "modules": [], "hash": "0", "top_k": 5}, "manifest": "0", "digest": "0",
        "residual": {"n_feature": 6, "dtype": "bfloat16"}, "tracked": [1, 2],
        "sampling": {"forced": False, "max_new_tokens": 3, "temperature": 0.0, "top_p": 1.0, "seed": 0},
    }  # fmt: skip
    return {"attnlens": {**values, **changes}}


def arrays(mode: str = "dense") -> dict[str, ArrayDescription]:
    found = {}
    for spec in ARRAYS:
        shape = tuple(SIZES[axis] for axis in spec.axes)
        dtype = "uint16" if spec.dtype == "model" else spec.dtype
        if spec.presence not in {"dense", "qk"} - {mode}:
            found[spec.name] = ArrayDescription(shape=shape, dtype=dtype, axes=spec.axes, chunk=shape)
    return found


def qk(*changed: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A capture in qk mode whose layers are as `changed`."""
    plain = {"n_kv_head": 1, "scaling": 0.5}
    layers = [layer(index) | plain | (changed[index] if index < len(changed) else {}) for index in range(2)]
    values = attributes(**{"attention": "qk", "attention_dtype": "bfloat16", **changes})
    values["attnlens"]["model"]["layers"] = layers
    return values


def test_good_metadata_have_no_problems() -> None:
    assert validate_store(STORE) == []
    assert validate_capture(attributes(), arrays(), where="0000") == []


def test_every_problem_of_a_store_at_once() -> None:
    broken = {"attnlens": {"format": "attnlens", "version": 1, "created": 3, "planned": ["../x", "0000", "0000"]}}
    problems = [str(problem) for problem in validate_store(broken)]
    assert len(problems) == 4
    assert any("created" in problem and "found 3" in problem for problem in problems)
    assert any("writer" in problem for problem in problems)
    assert any("'../x' is no capture name" in problem for problem in problems)
    assert any("named twice" in problem for problem in problems)
    assert "and 1 more" in summary(validate_store(broken))


def test_every_problem_of_the_arrays_at_once() -> None:
    found = arrays()
    del found["lens_entropy"]
    found["token_id"] = replace(found["token_id"], dtype="float32")
    found["next_rank"] = replace(found["next_rank"], axes=("token", "depth"))
    found["attention_max"] = replace(found["attention_max"], shape=(4, 2, 9))
    found["vocabulary_text"] = replace(found["vocabulary_text"], shape=(12,))
    found["attention_weight"] = replace(found["attention_weight"], chunk=(2, 3, 1, 4), shard=(2, 3, 7, 7))
    found["mine"] = ArrayDescription(shape=(1,), dtype="int8", axes=("x",), chunk=(1,))
    problems = {str(problem) for problem in validate_capture(attributes(), found, where="0000")}
    assert problems == {
        "0000/lens_entropy: is missing",
        "0000/token_id: dtype is float32, expected int32",
        "0000/next_rank: axes are (token, depth), expected (depth, token)",
        "0000/attention_max: axis key has 9 entries, expected 7",
        "0000/vocabulary_text: axis entry has 12 entries, but 11 in vocabulary_id",
        "0000/attention_weight: chunk shape (2, 3, 1, 4) does not divide shard shape (2, 3, 7, 7)",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"committed": 7}, "committed is 7, more than n_fed, 6"),
        ({"evidence": ["residual"], "residual": None}, "evidence names residual, but residual does not say its dtype"),
        ({"evidence": ["lens_token"]}, "evidence names 'lens_token', which is no such array"),
        ({"evidence": ["tracked_rank"], "tracked": []}, "evidence names tracked tokens, but tracked lists none"),
        ({"lenses": [{"name": "logit", "modules": [], "hash": "0", "top_k": 5}]}, "two lenses have the same name"),
        ({"lenses": [{"name": "a/b", "modules": [], "hash": "0", "top_k": 5}]}, "'a/b' is no name of a lens"),
        ({"lenses": [{"name": "tuned", "modules": [], "hash": "0", "top_k": 4}]}, "top_k differs between lenses"),
        ({"lenses": [{"name": "tuned", "modules": [], "hash": "0", "top_k": 5}]}, "lens_token_tuned: is missing"),
        ({"evidence": ["value_norm"], "tracked": [1, 2, 3]}, "axis tracked has 2 entries, expected 3"),
        ({"n_fed": 8}, "n_fed is 8, more than n_token, 7"),
        ({"committed": 5}, "5 of 6 rows are committed"),
        ({"status": "planned"}, "status is planned, but 6 rows"),
        ({"manifest": None}, "manifest or digest is missing"),
        ({"id": "0001"}, "the group is named '0000'"),
        ({"lens": None}, "lens_absent does not say why"),
        ({"attention": None}, "attention_absent does not say why"),
        ({"status": "done"}, "status: Input should be 'planned'"),
        ({"n_prompt": 0}, "n_prompt is 0, expected 1 or more in a capture that did not fail"),
    ],
)
def test_metadata_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    problems = [str(problem) for problem in validate_capture(attributes(**changes), arrays(), where="0000")]
    assert any(message in problem for problem in problems), problems


def test_a_partial_capture_may_have_longer_arrays() -> None:
    partial = attributes(status="partial", n_token=5, n_fed=5, committed=5, manifest=None, digest=None)
    found = {name: array for name, array in arrays().items() if not name.startswith("manifest")}
    assert validate_capture(partial, found, where="0000") == []
    shorter = attributes(status="partial", n_token=9, n_fed=6, manifest=None, digest=None)
    assert any("at least 9" in str(problem) for problem in validate_capture(shorter, found, where="0000"))


def test_a_capture_without_lens_or_attention_needs_fewer_arrays() -> None:
    bare = attributes(lens=None, lens_absent="no head", attention=None, attention_absent="not asked for")
    found = {spec.name: arrays()[spec.name] for spec in ARRAYS if wanted(spec, mode=None, lens=False, complete=True)}
    assert validate_capture(bare, found, where="0000") == []
    assert "attention_weight" not in found
    assert "lens_token" not in found


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (None, "no attribute 'attnlens'"),
        ({"format": "other", "version": 1}, "format is 'other'"),
        ({"format": "attnlens", "version": 9}, "format version 9, this attnlens reads version 1: upgrade attnlens"),
        ({"format": "attnlens", "version": True}, "version is True"),
        ({"format": "attnlens"}, "version is None"),
    ],
)
def test_a_foreign_store_has_one_problem(ours: object, message: str) -> None:
    problem = version_problem({"attnlens": ours} if ours is not None else {})
    assert problem is not None
    assert message in str(problem)
    assert validate_store({"attnlens": ours} if ours is not None else {}) == [problem]


def test_a_capture_of_queries_and_keys() -> None:
    assert validate_capture(qk(), arrays("qk"), where="0000") == []
    shared = qk(
        {"kind": "sliding", "window": 3}, {"key_source": 0, "softcap": 5.0, "sinks": True, "sink_values": [0.0] * 3}
    )
    assert validate_capture(shared, arrays("qk"), where="0000") == []
    found = arrays("qk")
    found["attention_q"] = replace(found["attention_q"], dtype="float32")
    found["attention_k"] = replace(found["attention_k"], shape=(7, 2, 3, 4))
    assert {str(problem) for problem in validate_capture(qk(), found, where="0000")} == {
        "0000/attention_q: dtype is float32, expected uint16",
        "0000/attention_k: axis kv_head has 3 entries, expected 1",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_kv_head": 2}, "queries and keys of its layers have different shapes"),
        ({"key_features": 5}, "queries and keys of its layers have different shapes"),
        ({"scaling": None}, "model.layers.0: scaling is missing"),
        ({"softcap": 0.0}, "softcap is 0.0, expected more than 0"),
        ({"kind": "sliding"}, "kind is sliding, but window is missing"),
        ({"sinks": True}, "sinks and sink_values contradict"),
        ({"sinks": True, "sink_values": [1.0]}, "has 1 sink values for 3 heads"),
        ({"key_source": 0}, "key_source is 0, which is no layer with keys of its own"),
        ({"key_source": 9}, "key_source is 9"),
    ],
)
def test_layers_that_cannot_be_replayed(changed: dict[str, Any], message: str) -> None:
    problems = [str(problem) for problem in validate_capture(qk(changed), arrays("qk"), where="0000")]
    assert any(message in problem for problem in problems), problems


def test_queries_need_a_dtype() -> None:
    problems = validate_capture(qk(attention_dtype=None), arrays("qk"), where="0000")
    assert any("attention_dtype does not say" in str(problem) for problem in problems)
