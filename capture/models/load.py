"""`load`: one call for every place a model may come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attnlens.capture.batch.launch import read_launch
from attnlens.capture.extra import require_capture_extra
from attnlens.capture.hub_files import model_named
from attnlens.capture.models import builtin, gguf, hub, meta
from attnlens.capture.models.device import check_device
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.quantize import describe, require_bitsandbytes, settle
from attnlens.capture.models.quiet import quiet
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.tokenizer import check_tokenizer_source, with_tokenizer
from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import AttnlensError, InputError, ModelError, Setting


@dataclass(frozen=True)
class Source:
    """A place models come from. `matches` looks at names and files only; `check` refuses what `load` could not load,
    before torch is imported. `splits`: it can load a part of a model, for tensor parallelism.
    """

    matches: Callable[[Request], bool]
    check: Callable[[Request], None]
    load: Callable[[Request, Progress], LoadedModel]
    splits: bool = False


# The first that matches is asked. The hub is last: it takes every name.
SOURCES = (
    Source(builtin.matches, builtin.check, builtin.load, splits=True),
    Source(meta.matches, meta.check, meta.load),
    Source(gguf.matches, gguf.check, gguf.load),
    Source(hub.matches, hub.check, hub.load, splits=True),
)


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    tensor_parallel: bool = False,
    tokenizer: str | None = None,
    ignore_weights: Sequence[str] = (),
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer, ready to be captured.

    Args:
        name: the built-in `smollm2-135m`; a folder in Meta's layout (params.json, consolidated.*.pth); a .gguf file or
            a folder with one; a folder in Hugging Face's layout; or a hub name.
        dtype: `auto` is the checkpoint's own; or float32, bfloat16, float16.
        device: `auto` is every GPU there is, else the CPU; or `cpu`, `cuda`, `cuda:1`.
        quantize: `8bit` or `4bit` by bitsandbytes.
        trust_remote_code: run Python code that comes with the checkpoint.
        revision: branch, tag or commit of a hub model.
        tensor_parallel: split the model over all processes that torchrun started, by transformers' own plan.
        tokenizer: folder, file or hub name of a tokenizer that lies elsewhere.
        ignore_weights: patterns (`*` and `?`) of tensors in the checkpoint that the model may leave out.
        progress: told about the stages `downloading`, `unpacking` and `loading`.

    Raises:
        InputError: an option that cannot be used.
        ModelError: there is no such model, or it is damaged, incomplete or no causal language model.
        MissingExtraError: a package is not installed.
    """
    require_capture_extra()
    name, revision = model_named(name, revision)
    request = Request(
        name,
        dtype,
        device,
        quantize,
        trust_remote_code,
        revision,
        tensor_parallel,
        tokenizer=tokenizer,
        ignore_weights=tuple(ignore_weights),
    )
    require_bitsandbytes(request)
    source = next(source for source in SOURCES if source.matches(request))
    source.check(request)
    check_tokenizer_source(request)
    if tensor_parallel:
        require_split(request, source.splits)
    check_device(device)
    report = progress or Silent()
    try:
        with quiet():
            report.stage("loading")
            loaded = source.load(request, report)
            return _finish(request, with_tokenizer(request, loaded))
    except AttnlensError:
        raise
    except Exception as error:  # a foreign checkpoint fails in any way a library knows; the cause is kept
        raise ModelError(f"cannot load {name}: {one_line(error)}") from error
    finally:
        report.end()


def require_split(request: Request, splits: bool) -> None:
    """Return if the model can be split over the processes that there are.

    Raises:
        InputError: there is one process only, or the model's format cannot be read in parts.
    """
    if read_launch().world < 2:
        raise InputError(
            Setting("tensor_parallel"), " needs several processes: torchrun --nproc-per-node N -m attnlens capture …"
        )
    if not splits:
        raise InputError(
            Setting("tensor_parallel"), f" needs Hugging Face's layout, and {request.name} is in another one"
        )


def _finish(request: Request, loaded: LoadedModel) -> LoadedModel:
    """Eval mode, no gradients, no local path in anything a store may copy, and what was done to the weights."""
    model: Any = loaded.model
    model.eval()
    model.requires_grad_(False)
    model.config._name_or_path = loaded.id
    model.name_or_path = loaded.id
    loaded.tokenizer.name_or_path = loaded.tokenizer_id or loaded.id
    settle(model)
    if request.quantize is None:
        return loaded
    return dataclasses.replace(loaded, quantization={**(loaded.quantization or {}), **describe(request, model)})
