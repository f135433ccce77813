"""What changed a model is in its store: adapters, hooks, other forwards, parametrizations, and a label."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune
from transformers.models.llama import modeling_llama

import attnlens
from attnlens import cli
from attnlens.capture import capture, capture_many
from attnlens.capture.hooks import hooks_of
from attnlens.capture.origin import Origin
from attnlens.render.diff.diff import diff
from attnlens.render.options import RenderOptions
from attnlens.schemas.errors import AttnlensError, InputError
from attnlens.schemas.metadata import CaptureMetadata, Hook
from attnlens.store.naming import model_name
from tiny import byte_level_tokenizer, llama

HERE = __name__
PROMPT = "Alice and Bob are siblings."
OPTIONS: dict[str, Any] = {"raw": True, "max_new_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level_tokenizer()


def model(**changes: Any) -> Any:
    """Its attention is far from flat."""
    made = llama(**changes)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                weight *= 4
    return made


def recorded(made: Any, tokenizer: Any, path: Path, **options: Any) -> CaptureMetadata:
    capture(made, tokenizer, PROMPT, path, **{**OPTIONS, **options})
    return attnlens.open(path)[-1].metadata


def double(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 2


def ablate_head(module: nn.Module, args: Any) -> Any:
    """Nothing of head 1 gets out of the layer."""
    inside = args[0].clone()
    inside[..., 8:16] = 0
    return (inside,)


class Scaled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5


class Steer(ModelHook):  # type: ignore[misc]
    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output


def forward(made: Any) -> Any:
    """A forward around the module's own, that has taken over its names."""
    own = made.model.layers[0].mlp.forward

    @functools.wraps(own)
    def around(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    made.model.layers[0].mlp.forward = around


def bound(made: Any) -> None:
    attention = made.model.layers[2].self_attn
    attention.forward = types.MethodType(lambda self, *args, **kwargs: None, attention)


def borrowed(made: Any) -> None:
    made.model.layers[1].mlp.forward = made.model.layers[2].mlp.forward


def offloaded_and_steered(made: Any) -> None:
    cpu_offload(made, torch.device("cpu"))
    add_hook_to_module(made.model.layers[0].mlp, Steer(), append=True)


class Around(nn.Module):
    """Stands in the place of a layer's part, which it calls."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        doubled: torch.Tensor = 2 * self.inside(hidden)
        return doubled


def surrounded(made: Any) -> None:
    made.model.layers[1].mlp = Around(made.model.layers[1].mlp)


CHANGES: list[tuple[Callable[[Any], Any], Hook]] = [
    (
        lambda made: made.model.layers[1].mlp.register_forward_hook(double),
        Hook(module="model.layers.1.mlp", kind="forward", function=f"{HERE}.double"),
    ),
    (
        lambda made: made.register_forward_hook(functools.partial(double)),
        Hook(module="", kind="forward", function=f"{HERE}.double"),
    ),
    (
        lambda made: made.lm_head.register_forward_pre_hook(torch.no_grad()(ablate_head)),
        Hook(module="lm_head", kind="forward_pre", function=f"{HERE}.ablate_head"),
    ),
    (
        lambda made: made.model.norm.register_forward_hook(lambda *_: None, always_call=True),
        Hook(module="model.norm", kind="forward", function=f"{HERE}.<lambda>.<locals>.<lambda>"),
    ),
    (forward, Hook(module="model.layers.0.mlp", kind="replaced", function=f"{HERE}.forward.<locals>.around")),
    (bound, Hook(module="model.layers.2.self_attn", kind="replaced", function=f"{HERE}.bound.<locals>.<lambda>")),
    (
        borrowed,
        Hook(
            module="model.layers.1.mlp",
            kind="replaced",
            function="transformers.models.llama.modeling_llama.LlamaMLP.forward of another module",
        ),
    ),
    (
        lambda made: parametrize.register_parametrization(made.lm_head, "weight", Scaled()),
        Hook(module="lm_head.weight", kind="parametrization", function=f"{HERE}.Scaled"),
    ),
    (
        lambda made: prune.l1_unstructured(made.lm_head, "weight", 0.5),  # type: ignore[no-untyped-call]
        Hook(module="lm_head", kind="forward_pre", function="torch.nn.utils.prune.L1Unstructured"),
    ),
    (surrounded, Hook(module="model.layers.1.mlp", kind="replaced", function=f"{HERE}.Around.forward")),
    (offloaded_and_steered, Hook(module="model.layers.0.mlp", kind="replaced", function=f"{HERE}.Steer")),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_what_somebody_put_on_a_module_is_found(change: Callable[[Any], Any], expected: Hook) -> None:
    made = llama()
    change(made)
    assert hooks_of(made) == (expected,)


def test_a_class_that_was_patched_is_found_on_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_llama.LlamaMLP.forward

    def patched(self: Any, hidden: Any) -> Any:
        return own(self, hidden)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", patched)
    found = hooks_of(llama())
    assert [one.module for one in found] == [f"model.layers.{layer}.mlp" for layer in (0, 1, 2)]
    assert {one.kind for one in found} == {"replaced"}
    assert {one.function.rpartition(".")[2] for one in found} == {"patched"}


def test_one_hook_on_many_modules_is_one_line() -> None:
    made = llama(num_hidden_layers=12)
    for layer in made.model.layers:
        layer.mlp.down_proj.register_forward_hook(double)
    assert hooks_of(made) == (
        Hook(module="model.layers.*.mlp.down_proj", kind="forward", function=f"{HERE}.double", count=12),
    )


@pytest.fixture
def everywhere() -> Iterator[None]:
    handle = register_module_forward_hook(double)
    yield
    handle.remove()


@pytest.mark.usefixtures("everywhere")
def test_a_hook_on_every_module_is_found() -> None:
    assert hooks_of(llama()) == (Hook(module="*", kind="forward", function=f"{HERE}.double"),)


def test_what_libraries_put_on_a_model_is_not_somebody_s(tokenizer: Any, tmp_path: Path) -> None:
    made = model()
    made.enable_input_require_grads()  # a hook of transformers'
    with torch.no_grad():
        made(torch.arange(5)[None], output_hidden_states=True)  # puts on those that collect outputs
    assert sum(len(module._forward_hooks) for module in made.modules())
    assert hooks_of(made) == ()
    offloaded = model()
    cpu_offload(offloaded, torch.device("cpu"))
    assert "forward" in vars(offloaded.model.layers[0].mlp.down_proj)
    assert hooks_of(offloaded) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, as its compiler is imported
        compiled: Any = torch.compile(llama())
        assert hooks_of(compiled) == ()
    about = recorded(made, tokenizer, tmp_path / "run.zarr")
    assert (about.label, about.model.adapters, about.model.hooks) == (None, [], [])
    assert recorded(made, tokenizer, tmp_path / "run.zarr", append=True).model.hooks == []  # nor what we put on


def test_two_captures_of_one_model_are_told_apart(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = model()
    plain, ablated = tmp_path / "plain.zarr", tmp_path / "ablated.zarr"
    text = {"token_ids": tokenizer.encode(" Who is Bob's sister?", add_special_tokens=False)}
    recorded(made, tokenizer, plain, **text)
    handle = made.model.layers[1].self_attn.o_proj.register_forward_pre_hook(ablate_head)
    about = recorded(made, tokenizer, ablated, **text)
    ids = torch.tensor(attnlens.open(ablated)[0].token_id)[None]
    made.config._attn_implementation = "eager"
    with torch.no_grad():
        wanted = made(ids, output_attentions=True).attentions[2][0].numpy()
    handle.remove()
    assert np.abs(attnlens.open(ablated)[0].attention.rows(slice(None), layers=[2])[0] - wanted).max() < 5e-4
    assert np.abs(attnlens.open(plain)[0].attention.rows(slice(None), layers=[2])[0] - wanted).max() > 5e-3
    path = "model.layers.1.self_attn.o_proj"
    assert about.model.hooks == [Hook(module=path, kind="forward_pre", function=f"{HERE}.ablate_head")]
    monkeypatch.setattr(
        sys, "argv", ["lens", "diff", str(plain), str(ablated), "-o", str(tmp_path / "out"), "--format", "svg"]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    assert capsys.readouterr().out.splitlines()[:2] == [
        "A: plain.zarr#0000, LlamaForCausalLM",
        "B: ablated.zarr#0000, LlamaForCausalLM, hooked",
    ]
    picture = next((tmp_path / "out").glob("*.svg")).read_text()
    assert "A: LlamaForCausalLM (float32), capture 0000" in picture
    assert "B: LlamaForCausalLM, hooked, float32, capture 0000" in picture
    recorded(made, tokenizer, plain, append=True, label="as it is", **text)
    report = diff(f"{plain}#0001", ablated, tmp_path / "more", options=RenderOptions(format="svg"))
    assert (report.model_a, report.model_b) == ("LlamaForCausalLM (as it is)", "LlamaForCausalLM, hooked")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("x" * 201, "has 201 characters"),
        ("two\nlines", "holds U\\+000A"),
        ("\x1b[31mred", "holds U\\+001B"),
        ("left \u202e right", "holds U\\+202E"),
        ("\ud800", "holds U\\+D800"),
    ],
)
def test_a_label_that_cannot_be_shown_is_refused(tokenizer: Any, tmp_path: Path, label: str, words: str) -> None:
    expected = f"label {words}.*; expected one line of text, at most 200 characters"
    with pytest.raises(InputError, match=expected):
        capture(torch.nn.Linear(2, 2), tokenizer, PROMPT, tmp_path / "run.zarr", label=label)
    with pytest.raises(InputError, match=expected):
        capture_many(torch.nn.Linear(2, 2), tokenizer, [PROMPT], tmp_path / "run.zarr", label=label)
    assert not list(tmp_path.iterdir())


def test_a_label_is_refused_before_a_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a\n")
    for given in (["-p", "a"], ["--prompts", str(tmp_path / "prompts.txt")]):
        command = ["lens", "capture", "-m", "./nowhere", *given, "--label", "a\nb", "-o", str(tmp_path / "run.zarr")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 1
        assert "lens: --label holds U+000A" in capsys.readouterr().err


def test_a_label_goes_with_an_origin(tokenizer: Any, tmp_path: Path) -> None:
    origin = Origin(id="a/b", label="old")
    about = recorded(model(), tokenizer, tmp_path / "run.zarr", origin=origin, label="Größe 3 🙂")
    assert model_name(about) == "a/b (Größe 3 🙂)"


def many(made: Any, tokenizer: Any, path: Path, **options: Any) -> Any:
    return capture_many(made, tokenizer, [PROMPT], path, **{**OPTIONS, "resume": True, **options})


def test_a_resume_of_a_model_that_was_changed_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path, made = tmp_path / "run.zarr", model()
    handle = made.model.norm.register_forward_hook(double)
    many(made, tokenizer, path, label="doubled", origin=Origin(tokenizer="some/tokenizer"))
    same = {"label": "doubled", "origin": Origin(tokenizer="some/tokenizer")}
    assert many(made, tokenizer, path, **same).captures == []
    refused: list[tuple[dict[str, Any], str]] = [
        ({**same, "label": None}, "label was 'doubled', now it is None"),
        ({**same, "origin": None}, "tokenizer was 'some/tokenizer', now it is None"),
    ]
    for options, words in refused:
        with pytest.raises(InputError, match=f"cannot resume .*{words}"):
            many(made, tokenizer, path, **options)
    handle.remove()
    with pytest.raises(InputError, match=rf"cannot resume .*hooks: no longer 'forward on model\.norm: {HERE}\.double'"):
        many(made, tokenizer, path, **same)


# Adapters: peft comes with the extra `capture`.


def adapted(name: str = "poet", seed: int = 0) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = model()
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what it renamed
        return peft.get_peft_model(base, config, adapter_name=name)


def digest_of(wrapped: Any, name: str) -> str:
    """sha256 over the adapter's tensors as peft saves them, in the layout that docs/format.md gives."""
    peft = pytest.importorskip("peft")
    total = hashlib.sha256()
    for key, tensor in sorted(peft.get_peft_model_state_dict(wrapped, adapter_name=name).items()):
        array = tensor.detach().numpy()
        shape = "x".join(str(size) for size in array.shape)
        total.update(f"{key.removeprefix('base_model.model.')} {array.dtype} {shape}\n".encode() + array.tobytes())
    return total.hexdigest()


def test_adapters_of_a_model_are_recorded(tokenizer: Any, tmp_path: Path) -> None:
    wrapped = adapted()
    wrapped.add_adapter("idle", wrapped.peft_config["poet"])
    about = recorded(wrapped, tokenizer, tmp_path / "run.zarr")
    assert model_name(about) == "LlamaForCausalLM + adapter poet"
    assert about.model.architecture == "LlamaForCausalLM"
    poet, idle = about.model.adapters
    assert (poet.name, poet.type, poet.rank, poet.scaling) == ("poet", "LORA", 4, 2.0)
    assert poet.targets == ["q_proj", "v_proj"]
    assert (poet.active, poet.merged, idle.name, idle.active) == (True, False, "idle", False)
    assert (poet.digest, idle.digest) == (digest_of(wrapped, "poet"), digest_of(wrapped, "idle"))
    assert poet.digest != idle.digest
    wrapped.merge_adapter(["poet"])
    merged = recorded(wrapped, tokenizer, tmp_path / "run.zarr", append=True).model.adapters[0]
    assert (merged.merged, merged.digest) == (True, poet.digest)


def test_an_adapter_that_was_loaded_with_the_model_is_told_once(tokenizer: Any, tmp_path: Path) -> None:
    wrapped = adapted()
    seen = recorded(wrapped, tokenizer, tmp_path / "run.zarr").model.adapters
    gone = seen[0].model_copy(update={"name": "melted", "merged": True})
    origin = Origin(adapters=(seen[0].model_copy(update={"active": False}), gone))
    about = recorded(wrapped, tokenizer, tmp_path / "run.zarr", append=True, origin=origin)
    assert about.model.adapters == [seen[0], gone]


def test_a_resume_with_another_adapter_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    many(adapted(seed=1), tokenizer, path)
    assert many(adapted(seed=1), tokenizer, path).captures == []
    with pytest.raises(InputError, match=r"cannot resume .*adapters: no longer 'poet \(LORA.*, now 'poet \("):
        many(adapted(seed=2), tokenizer, path)
    with pytest.raises(AttnlensError, match=r"cannot resume .*adapters: no longer 'poet"):
        many(model(), tokenizer, path)
