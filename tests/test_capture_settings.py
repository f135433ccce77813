"""Settings that mean nothing are called by their parameter from Python, and by their option on the command line."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from attnlens import cli
from attnlens.capture import capture
from attnlens.capture.settings import Generation, Settings
from attnlens.schemas.errors import InputError
from families import byte_tokenizer, tiny_model

WRONG: list[tuple[dict[str, Any], str, list[str], str]] = [
    ({"lens_points": "foo"}, "lens_points is 'foo', ", ["--lens-points", "foo"], "--lens-points is 'foo', "),
    ({"lens_tokens": "foo"}, "lens_tokens is 'foo', ", ["--lens-tokens", "foo"], "--lens-tokens is 'foo', "),
    ({"attention": "foo"}, "attention is 'foo', ", ["--attention", "foo"], "--attention is 'foo', "),
    ({"lenses": ("foo",)}, "lenses 'foo' is not known", ["--lens", "foo"], "--lens 'foo' is not known"),
    ({"lenses": ("logit", "logit")}, "lenses logit: ", ["--lens", "logit", "--lens", "logit"], "--lens logit: "),
    ({"lenses": ("tuned:nowhere",)}, "lenses tuned:nowhere: ", ["--lens", "tuned:nowhere"], "--lens tuned:nowhere: "),
    ({"lens": False, "track": ("a",)}, "lenses, lens_tokens, track", ["--no-lens", "--track", "a"], "--lens, --lens-"),
    ({"top_k": 0}, "top_k is 0, ", ["--top-k", "0"], "--top-k is 0, "),
    ({"max_new_tokens": -1}, "max_new_tokens is -1, ", ["-n", "-1"], "--max-new-tokens is -1, "),
    ({"temperature": -1.0}, "temperature is -1.0, ", ["--temperature", "-1"], "--temperature is -1.0, "),
    ({"top_p": 2.0}, "top_p is 2.0, ", ["--top-p", "2"], "--top-p is 2.0, "),
    ({"seed": 2**70}, "seed is 1180591620717411303424, ", ["--seed", str(2**70)], "--seed is 1180591620717411303424, "),
]


@pytest.mark.parametrize(("given", "words", "options", "said"), WRONG)
def test_a_setting_has_the_name_by_which_it_was_given(
    given: dict[str, Any],
    words: str,
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind: Any = Settings if set(given) <= set(Settings.__dataclass_fields__) else Generation
    with pytest.raises(InputError) as caught:
        kind(**given).check()
    assert str(caught.value).startswith(words)
    assert "--" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    monkeypatch.setattr(
        sys, "argv", ["lens", "capture", "-m", "m", "-p", "a", "-q", "-o", str(tmp_path / "run.zarr"), *options]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith(f"lens: {said}")
    assert not list(tmp_path.iterdir())


def test_every_option_that_messages_name_is_there() -> None:
    options = {
        option
        for parameter in typer.main.get_command(cli.app).commands["capture"].params  # type: ignore[attr-defined]
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for given, *_ in WRONG:
        kind: Any = Settings if set(given) <= set(Settings.__dataclass_fields__) else Generation
        with pytest.raises(InputError) as caught:
            kind(**given).check()
        named = [piece.option for piece in caught.value.args if hasattr(piece, "option")]
        assert named
        assert set(named) <= options
    with pytest.raises(InputError) as caught:
        Settings(buffer_bytes=1).check()
    assert str(caught.value).startswith("buffer_bytes is 1 bytes, ")
    assert caught.value.on_command_line().startswith("--buffer is 1 bytes, ")


def test_tokens_to_track(tmp_path: Path) -> None:
    for track, words, said in (
        ("fox", "track 'fox' is no", "--track 'fox' is no"),
        (300, "track 300:", "--track-id 300:"),
    ):
        with pytest.raises(InputError) as caught:
            capture(tiny_model("llama"), byte_tokenizer(), "Hi", tmp_path / "run.zarr", raw=True, track=[track])
        assert str(caught.value).startswith(words)
        assert "--" not in str(caught.value)
        assert caught.value.on_command_line().startswith(said)
