"""What somebody put on the modules of a model, or in their place: hooks, other forwards, parametrizations, own modules.

What transformers, accelerate, peft and the quantizers put there belongs to how the model is run, and is left out.
Changed weights cannot be seen: a label says so.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from attnlens.schemas.metadata import Hook

LIBRARIES = ("transformers", "accelerate", "peft", "bitsandbytes", "attnlens", "transformers_modules", "deepspeed",
             "torch.distributed", "torch._dynamo", "aqlm", "auto_gptq", "auto_round", "awq", "compressed_tensors",
             "eetq", "fp_quant", "gptqmodel", "hqq", "kernels", "optimum", "quanto", "spqr_quant", "torchao",
             "vptq")  # fmt: skip
"""Packages whose hooks and forwards belong to how a model is loaded and run. `transformers_modules` is a model's own
code from the hub; the last ones are quantizers, which the store names elsewhere."""
TORCH = "torch"
PARTS = ("apex", "causal_conv1d", "fla", "flash_attn", "mamba_ssm", "timm", "torchaudio", "torchvision", "xformers")
"""Packages from which classes of transformers take modules."""
DECORATORS = (TORCH, "contextlib", "functools")
"""Where decorators come from that leave a function what it is."""
COMPILED = ("torch._dynamo",)
SEPARATE = 8
"""Modules that share a hook and are still listed one by one; of more the paths are put together."""
LONGEST = 200
"""Characters of a function's name."""
_DEPTH = 32
"""Functions around functions that are looked into."""
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def hooks_of(model: nn.Module) -> tuple[Hook, ...]:
    """Everything that was put on modules of `model` and may change what a forward pass computes, in their order."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for path, kind, function in _all(model):
        paths = found.setdefault((_NUMBER.sub("*", path), kind, function), [])
        if path not in paths[-1:]:
            paths.append(path)
    hooks: list[Hook] = []
    for (pattern, kind, function), paths in found.items():
        if len(paths) <= SEPARATE:
            hooks += [Hook(module=path, kind=kind, function=function) for path in paths]
        else:
            hooks.append(Hook(module=pattern, kind=kind, function=function, count=len(paths)))
    return tuple(hooks)


def _all(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Path, kind and function of each."""
    everywhere: Any = torch_module
    for kind, hooks in (("forward_pre", everywhere._global_forward_pre_hooks),
                        ("forward", everywhere._global_forward_hooks)):  # fmt: skip
        yield from (("*", kind, name) for hook in hooks.values() if (name := _whose(hook)))
    for path, module in model.named_modules():
        for kind, hooks in (("forward_pre", module._forward_pre_hooks), ("forward", module._forward_hooks)):
            yield from ((path, kind, name) for hook in hooks.values() if (name := _whose(hook)))
        yield from ((path, "replaced", name) for name in _forwards(module))
        if _foreign(module, model) and "parametrizations" not in path.split("."):
            yield path, "replaced", f"{type(module).__module__}.{type(module).__qualname__}.forward"[:LONGEST]
        if parametrize.is_parametrized(module):
            for tensor, steps in module.parametrizations.items():
                place = f"{path}.{tensor}" if path else tensor
                yield from ((place, "parametrization", name) for step in steps if (name := _whose(step)))


def _foreign(module: nn.Module, model: nn.Module) -> bool:
    """Whether the module is of a class that is nobody's but the user's, in a model of a library's class."""
    known = (*LIBRARIES, *PARTS, TORCH)
    return _within(type(model).__module__, LIBRARIES) and not _within(type(module).__module__, known)


def _forwards(module: nn.Module) -> Iterator[str]:
    """Names of the functions that run in place of the class's own forward."""
    own = type(module).forward
    for attribute in ("forward", "_old_forward"):  # accelerate keeps there what it wrapped
        put = vars(module).get(attribute)
        if (
            put is not None
            and not _within(type(module).__module__, COMPILED)
            and (name := _whose(put, own) or _borrowed(put, module))
        ):
            yield name
    hook = vars(module).get("_hf_hook")  # accelerate's own only offload, those of others may do anything
    yield from (name for one in getattr(hook, "hooks", (hook,)) if one is not None and (name := _whose(one)))
    maker = next(base for base in type(module).__mro__ if "forward" in vars(base))
    if _within(maker.__module__, (*LIBRARIES, TORCH)) and (name := _whose(own, torch=False)):  # a class was patched
        yield name


def _borrowed(put: Any, module: nn.Module) -> str | None:
    """The name of a forward that is another module's; adapters of peft hand on that of what they wrap."""
    owner = getattr(put, "__self__", None)
    if not isinstance(owner, nn.Module) or owner is module:
        return None
    if any(_within(type(one).__module__, ("peft",)) for one in (owner, module)):
        return None
    return f"{type(owner).__module__}.{type(owner).__qualname__}.forward of another module"[:LONGEST]


def _whose(function: Callable[..., Any], own: Callable[..., Any] | None = None, *, torch: bool = True) -> str | None:
    """The name of the outermost part of a callable that no library wrote; None where libraries wrote all of it.

    What torch offers to change a model by (pruning, weight norm) counts, unless `torch` is False; a decorator of
    torch's around another function does not. `own` ends the search: the function that runs there anyway.
    """
    last = None
    for layer in _layers(function):
        if layer is own:
            return None
        module, name = _written(layer)
        last = None
        if _within(module, LIBRARIES):
            continue
        last = f"{module}.{name}"[:LONGEST]
        if not _within(module, DECORATORS):
            return last
    return last if torch else None


def _layers(function: Any) -> Iterator[Any]:
    """A callable and what it wraps, outermost first."""
    for _ in range(_DEPTH):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        else:
            yield function
            inner = inspect.getattr_static(function, "__wrapped__", None)
            if inner is None:
                return
            function = inner


def _written(function: Any) -> tuple[str, str]:
    """Module and name of a function, as its code has them: a wrapper has often taken over those of what it wraps."""
    if isinstance(function, FunctionType):
        return str(function.__globals__.get("__name__", "?")), function.__code__.co_qualname
    kind = function if isinstance(function, type) else type(function)
    if hasattr(function, "__qualname__") and kind.__module__ == "builtins":  # written in C
        return str(getattr(function, "__module__", None) or "builtins"), function.__qualname__
    return kind.__module__, kind.__qualname__


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
