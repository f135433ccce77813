"""A model as its configuration and tokenizer describe it: no weight is loaded, and none is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnlens.capture.models import builtin, gguf, hub, meta
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.generation_file import FILE, keep_dropped
from attnlens.capture.models.quiet import quiet
from attnlens.capture.models.request import Request
from attnlens.capture.models.tokenizer import check_size, check_tokenizer_source, load_tokenizer
from attnlens.schemas.errors import AttnlensError, ModelError


@dataclass(frozen=True, kw_only=True)
class Outline:
    """`dtype` is the torch dtype that the weights would have, `stored` the one that they have in the checkpoint;
    `generation` the checkpoint's generation settings.
    """

    config: Any
    tokenizer: Any
    id: str
    dtype: Any
    stored: Any
    generation: Any = None


OUTLINES: tuple[tuple[Callable[[Request], bool], Callable[[Request], tuple[Any, Any, str, Any]]], ...] = (
    (builtin.matches, builtin.outline),
    (meta.matches, meta.outline),
    (gguf.matches, gguf.outline),
    (hub.matches, hub.outline),
)
"""In the order of `load.SOURCES`."""


def outline(request: Request) -> Outline:
    """Configuration and tokenizer of the model that `request` names.

    Raises:
        InputError: an option that cannot be used.
        ModelError: there is no such model here, or it is no causal language model.
    """
    check_tokenizer_source(request)
    describe = next(describe for matches, describe in OUTLINES if matches(request))
    try:
        with quiet():
            config, tokenizer, name, dtype = describe(request)
            elsewhere = load_tokenizer(request)
            if elsewhere is not None:
                tokenizer = elsewhere
                check_size(request, tokenizer, config.get_text_config(decoder=True).vocab_size)
            return Outline(
                config=config,
                tokenizer=tokenizer,
                id=name,
                dtype=request.torch_dtype() or dtype,
                stored=dtype,
                generation=_generation(request),
            )
    except AttnlensError:
        raise
    except Exception as error:  # a foreign checkpoint fails in any way a library knows; the cause is kept
        raise ModelError(f"cannot plan for {request.name}: {one_line(error)}") from error


def _generation(request: Request) -> Any:
    """generation_config.json of a local folder, where there is one."""
    from transformers import GenerationConfig

    folder = request.path
    if not (folder / FILE).is_file():
        return None
    settings = GenerationConfig.from_pretrained(folder)
    keep_dropped(settings, folder)
    return settings
